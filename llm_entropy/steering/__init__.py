"""What steers: vectors, and the hooks that add them."""

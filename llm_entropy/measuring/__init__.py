"""States -> statistics -> metrics."""

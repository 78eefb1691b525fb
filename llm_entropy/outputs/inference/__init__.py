"""How sure a difference is: intervals, tests, corrections, doses and placebos, as pure functions on arrays."""

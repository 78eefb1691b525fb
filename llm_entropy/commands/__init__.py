"""The front doors: the command line and what it shows. A new command is a row of `table` and a module here."""

"""What is read and written: whole or not at all, with a record of where it comes from."""

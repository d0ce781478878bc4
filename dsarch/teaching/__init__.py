"""What the book adds to the package: explorers, exercises and checks."""

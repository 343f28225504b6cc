"""What takes longer than the tests may: `make soak`."""

"""What `make run` sends: thirty days of a made-up shop at its first start, and then live traffic."""

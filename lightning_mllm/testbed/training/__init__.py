"""How the test-bed's models are trained, examined and stored."""

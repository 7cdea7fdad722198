"""Terms of the scale model, one file for each; ``table`` lists them."""

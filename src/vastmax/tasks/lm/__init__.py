"""Language modelling: the next token out of V."""

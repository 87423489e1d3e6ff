"""Where the model looks: shares of attention, and heads that point at what a question is about."""

"""GQA's questions: the six tasks of the information-flow study."""

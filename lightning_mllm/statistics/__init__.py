"""Uncertainty and decisions, apart from what they are about.

| module | for |
|---|---|
| `picture_bootstrap` | numbers per question: paired bootstrap over pictures |
| `seeds_and_samples` | scores of models that were trained with several seeds and tested on the same samples |
| `shares` | shares (right answers, flips, hallucinations): Wilson, over pictures; differences and ratios of shares |
| `jackknife` | what is made of sums over samples, where the samples are not kept |
| `correlation` | whether two numbers of few things go together: permutation tests |
| `decisions` | whether a claim holds, does not, or is undecided; Holm's correction |
| `masked` | means, medians and extremes of what a mask keeps |
"""

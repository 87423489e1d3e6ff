"""Uncertainty and decisions, independent of what they are about.

Every interval is a 95 % interval, and every test that decides is done at 5 % (`interval.ALPHA`).

| module | what it is for |
|---|---|
| `interval` | the type `Interval`; t intervals of a few independent numbers, such as folds |
| `shares` | shares (right answers, flips) and their differences and ratios: scores over pictures |
| `paired` | two models on the same samples: McNemar's exact test, interval of the difference |
| `picture_bootstrap` | means, medians, ratios of numbers per question: bootstrap over pictures |
| `jackknife` | what is made of sums over samples, where the samples are not kept |
| `seeds_and_samples` | scores of models trained with several seeds: bootstrap over both |
| `correlation` | whether two numbers of a few points go together: permutation test, bootstrap |
| `decisions` | whether a claim holds, does not, or is undecided; Holm's correction |
| `question_table` | rows per question as arrays: kinds, pictures, numbers |
| `answer_arrays` | answers by sample as arrays, for `seeds_and_samples` |
| `masked` | means, medians and extremes of what a mask keeps, of tensors |
| `missing` | means and ratios where some numbers are missing, of arrays |
"""

from __future__ import annotations

from lightning_mllm.callbacks.probe_table import draw_probe_table


def test_each_probe_has_its_mean_before_the_training_and_at_the_last_step() -> None:
    scores = {("val", 0): (0.5, 0.6), ("val", 4): (0.7, 0.9), ("test", 4): (1.0, 1.0)}
    rows = []
    for (stage, step), accuracies in scores.items():
        for seed, accuracy in enumerate(accuracies):
            row = {"point": "post-mean", "probe": "linear", "seed": seed, "n_test": 8}
            rows.append({**row, "stage": stage, "step": step, "accuracy": accuracy})

    table = draw_probe_table(rows)

    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert list(zip(*cells, strict=True)) == [
        ("post-mean, linear", "validation", "8", "0.550", "0.800"),
        ("post-mean, linear", "test", "8", "", "1.000"),
    ]
    assert table.caption == "accuracy, mean of 2 seeds"

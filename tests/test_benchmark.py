"""``python -m fastbp bench``."""


def test_bench_prints_a_row_for_every_network(capsys):
    from fastbp import benchmark
    from fastbp.__main__ import main

    main(["bench", "--seconds", "0"])
    _, head, *rows = capsys.readouterr().out.splitlines()
    assert "numpy us" in head
    assert [row.split()[:3:2] for row in rows] == [
        ["-".join(map(str, widths)), optimizer]
        for widths, _, _ in benchmark.NETS.values()
        for optimizer in ("SGD", "Adam")
    ]


def test_operations_of_a_step():
    from fastbp import benchmark

    assert benchmark.operations((3, 5, 2), 7) == 2 * 7 * (3 * 5 * 2 + 5 * 2 * 3)  # no dx for the first layer

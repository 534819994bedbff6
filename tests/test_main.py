"""``python -m fastbp``."""


def test_the_main_job(capsys):
    from fastbp.__main__ import EPOCHS, main

    main([])
    *_, held_out, comparison = lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("epoch") for line in lines) == EPOCHS
    assert float(held_out.split()[2]) >= 0.97
    assert "numpy" in comparison

"""``python -m fastbp``."""


def test_the_main_job(capsys):
    import fastbp as fb
    from fastbp.__main__ import EPOCHS, main

    main([])
    *_, held_out, comparison = lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("epoch") for line in lines) == EPOCHS
    assert float(held_out.split()[2]) >= 0.97
    for part in ("64-128-10 on 1438 digits", f"{EPOCHS} epochs", f"at most {fb.get_num_threads()} threads", "numpy"):
        assert part in comparison
    assert f" s on {fb.core.backend_name()}, " in comparison

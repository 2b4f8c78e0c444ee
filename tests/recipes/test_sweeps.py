"""Jobs of a sweep that fail: noted, whatever the reason, and out of the way of the others."""

from types import SimpleNamespace

import pytest

from recipes.run import sweeps


# Breaks if an error that nobody foresaw ends the sweep, is not written where the table looks for it, or hides where it
# came from; or if a reason that a user can cause comes with a traceback.
@pytest.mark.parametrize(
    ("error", "said", "traced"),
    [(KeyError("layer"), "KeyError: 'layer'", True), (ValueError("too long"), "too long", False)],
)
def test_whatever_ends_a_job_is_noted(tmp_path, monkeypatch, capsys, error, said, traced):
    job = SimpleNamespace(num=3, override_dirname="seed=1")
    settings = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path / "3")), job=job)
    monkeypatch.setattr(sweeps, "HydraConfig", SimpleNamespace(get=lambda: settings))

    def fails():
        raise error

    assert sweeps.noted(fails) is None and sweeps.noted(lambda: 0.5) == 0.5
    assert (tmp_path / "3" / sweeps.FAILED).read_text() == f"{said}\n"
    err = capsys.readouterr().err
    assert f"job 3 (seed=1) failed: {said}" in err and ("Traceback" in err) == traced

"""`edgegen eval`, in this process: the in-memory engine knows its functions only here."""

import json

import pytest

from edgegen.bundle import open_bundle
from edgegen.cli import main

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


@pytest.fixture
def edgegen(monkeypatch, capsys):
    """Run the command line; (exit code, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr("sys.argv", ["edgegen", "eval", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def test_every_figure_has_its_error_and_what_it_was_counted_over(edgegen, image_bundle):
    code, out, err = edgegen(
        image_bundle, "--data", "digits", "--num", 20, "--metrics", "elbo,swd", "-q"
    )
    assert code == 0
    assert "toy-vae (fp32) on callable, cpu: 20 images of seed 0; 20 of 179 held-out images" in out
    assert out.count("20 images ") == 3  # two figures and the title
    assert "nats/image" in out and "higher is better" in out
    assert err == "note: a Gaussian ELBO is at the sigma that fits these images best\n"


def test_json_is_the_record_alone(edgegen, image_bundle):
    code, out, _ = edgegen(
        *(image_bundle, "--data", "digits", "--num", 20, "--metrics", "swd", "--json"),
    )
    found = json.loads(out)
    assert (code, found["data"]) == (0, "digits")
    assert set(found["figures"]["swd_pixels"]) == {
        *("value", "error", "count", "of", "better", "unit"),
    }


def test_figures_are_saved_and_a_sheet_is_drawn(edgegen, image_bundle, tmp_path):
    pytest.importorskip("PIL")
    sheet = tmp_path / "sheet.png"
    code, _, err = edgegen(
        *(image_bundle, "--data", "digits", "--against", image_bundle, "--metrics", "ssim,kl"),
        *("--num", 20, "--save", "--sheet", sheet),
    )
    assert code == 0
    assert f"{image_bundle}: 2 figures stored as quality.NAME" in err
    assert set(open_bundle(image_bundle).manifest.quality) == {"ssim", "kl_to_prior_nats"}
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_reasons_for_what_is_missing_are_said_once(edgegen, image_bundle):
    code, _, err = edgegen(image_bundle, "--data", "digits", "--num", 4, "-q")
    assert code == 0
    assert "without psnr_db, ssim: there is no model to compare with; name one: --against" in err
    assert err.count("4 images, wanted 10 or more") == 1
    assert "without swd_pixels, fid, kid, precision, recall, inception_score: 4 images" in err


def test_samples_are_written_without_data_and_scored_with_it(edgegen, image_bundle, tmp_path):
    file = tmp_path / "s.npz"
    code, out, err = edgegen(image_bundle, "--write-samples", file, "--num", 12)
    assert (code, out, err) == (0, "", f"{file}: 12 images\n")
    code, out, _ = edgegen(
        image_bundle, "--data", "digits", "--samples", file, "--metrics", "swd", "-q"
    )
    assert code == 0
    assert "from a file of" in out and "12 of 179 held-out images" in out


@pytest.mark.parametrize(
    ("args", "code", "message", "hint"),
    [
        ((), 2, "no data to evaluate on", "--data digits"),
        (("--data", "digit"), 1, "no such data set", "did you mean 'digits'?"),
        (("--data", "digits", "--num", 0), 2, "num is 0, wanted 1 or more", "--num"),
        (("--data", "digits", "--metrics", "kidd"), 1, "no metric 'kidd'", "'kid'"),
        (("--data", "digits", "--against", "nowhere"), 1, "nowhere: no bundle there", "export"),
    ],
)
def test_bad_input_is_two_lines_and_an_exit_code(edgegen, image_bundle, args, code, message, hint):
    found, out, err = edgegen(image_bundle, *args, "-q")
    assert (found, out) == (code, "")
    assert err.startswith("error: ") and message in err.splitlines()[0]
    assert err.splitlines()[1].startswith("hint:  ") and hint in err.splitlines()[1]


def test_a_number_has_as_many_digits_as_its_error_lets_count():
    from edgegen.cli.eval import _number
    from edgegen.quality import Figure

    def said(value, error):
        return _number(Figure(value, error, 1, "images", "lower"))

    assert said(1234.567, 12.0) == ("1,235", "12")
    assert said(1.00002, 0.00001) == ("1.00002", "0.00001")
    assert said(0.5, None) == ("0.500", "-")
    assert said(1.0, 0.0) == ("1.00", "0")
    assert said(1.0, 1e-12) == ("1", "1e-12")

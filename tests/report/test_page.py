import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from made_runs import make_analysis, make_evaluation, make_examples, write_run
from PIL import Image

from dexcore.report import build_report
from dexcore.report.unfinished import report_unfinished

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")

_VOID = {"meta", "img", "br", "hr", "link"}


class _Page(HTMLParser):
    """Checks that tags nest, and gathers sources and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.links, self.ids, self.words = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "action")]
        self.links += [value for name, value in attrs if name == "href"]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(folder):
    return _Page((folder / "report.html").read_text(encoding="utf-8"))


def gates(*experts, n=8):
    rng = np.random.default_rng(0)
    return [rng.dirichlet(np.ones(count), n) for count in experts]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    write_run(folder, make_evaluation(gates=gates(4, 3)), load=(4, 3), moments=(0, 2, 6))
    assert build_report(folder).files["report"] == str(folder / "report.html")
    return folder


def test_the_page_carries_every_picture_and_nothing_from_elsewhere(run):
    page = read(run)
    embedded = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources]
    files = {path.name: path.read_bytes() for path in (run / "report").iterdir()}
    assert set(files) == {
        "losses.png",
        "schedules.png",
        "load.png",
        "starving.png",
        "routing.png",
        "similarity.png",
        "similarity_course.png",
        "features.png",
        "gradients.png",
        "patches.png",
        "reconstructions.png",
        "specialization.png",
        "experts_block_01.png",
        "experts_block_02.png",
    }
    assert sorted(embedded) == sorted(files.values())
    html = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script", html)
    assert page.links == ["data:,", *(f"#{name}" for name in page.ids)]  # an empty icon, and places in the page


def test_pictures_are_drawings_and_not_blank(run):
    for path in (run / "report").iterdir():
        image = Image.open(io.BytesIO(path.read_bytes()))
        image.load()
        assert image.width == pytest.approx(1104, abs=2)
        pixels = np.asarray(image.convert("RGBA"))
        assert (pixels[..., 3] > 0).mean() > 0.02
        assert len(np.unique(pixels.view(np.uint32))) > 20


def test_the_page_is_made_for_phones_light_and_dark(run):
    html = (run / "report.html").read_text(encoding="utf-8")
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
    assert "prefers-color-scheme: dark" in html


def test_every_picture_says_how_to_read_it_and_what_is_bad(run):
    html = (run / "report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, flags=re.S)
    assert len(captions) == 14
    for caption in captions:
        reading = re.sub(r'<p class="found">.*?</p>\n|\n<details.*</details>', "", caption, flags=re.S)
        assert re.fullmatch(r"\w[^.]{20,}\. <b>Bad:</b> \w.{20,}\.", reading.replace("0.1", ""), flags=re.S), reading


def test_the_page_holds_measures_configuration_and_the_way_to_the_model(run):
    page = read(run)
    assert "Photo (synthetic) 0.500 1 0.500 1" in page.text
    assert "mean over modalities, real images" in page.text
    assert "dim 192; note <b>&" in page.text  # and not as markup
    assert f'from_pretrained("{(run / "model").as_posix()}")' in page.text
    assert f"dexcore report {run.as_posix()} makes it again" in page.text
    assert "patch's mean and deviation are taken from the target" in page.text
    assert (run / "summary.json").is_file()


def test_the_page_tells_how_far_experts_came_between_the_first_and_the_last_moment(run):
    text = read(run).text
    assert "After 0 and after 6 steps, mean over blocks: two experts 1.00 and 0.14, an expert and the director" in text
    assert "analysis.npz, similarity.jsonl beside this file" in text


def test_a_run_of_an_older_version_gets_its_report_without_the_experts_course(tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)
    build_report(write_run(tmp_path, make_evaluation(gates=gates(4)), load=(4,)))
    text = read(tmp_path).text
    assert "How far experts have grown apart" in text
    assert "Likeness of the experts over time" not in text
    assert "similarity.jsonl" not in text


def test_the_report_can_be_made_again_and_is_the_same(run):
    before = (run / "report.html").read_bytes()
    (run / "report" / "of_an_older_version.png").write_bytes(b"")
    build_report(run)
    assert not (run / "report" / "of_an_older_version.png").exists()
    assert (run / "report.html").read_bytes() == before
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]


def test_reconstructions_show_a_held_out_image_where_there_is_one(tmp_path):
    # The held-out CT example is red, the training one black; Photo has a training example alone.
    examples = make_examples([0, 0, 2], [False, False, True], [False, True, False])
    examples.hidden[:] = True
    for name in ("input", "reconstruction", "patch_mean"):
        getattr(examples, name)[:] = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1]])[:, None, None]
    build_report(write_run(tmp_path, make_evaluation(examples=examples)))
    pixels = np.asarray(Image.open(tmp_path / "report" / "reconstructions.png").convert("RGBA")).reshape(-1, 4)
    share = {color: (pixels == (*color, 255)).all(axis=1).mean() for color in ((255, 0, 0), (0, 0, 255), (0, 0, 0))}
    assert share[255, 0, 0] > 0.2
    assert share[0, 0, 255] > 0.2
    assert share[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("evaluation", "written", "expected"),
    [
        (make_evaluation(gates=gates(4)), {"steps": 1, "load": (4,)}, "1 step"),
        (make_evaluation(gates=gates(4)), {"steps": 2, "load": (4,)}, "2 steps"),
        (make_evaluation(), {}, "No DEX block was evaluated"),
        (make_evaluation([0] * 8, gates=gates(4)), {"load": (4,)}, "The images are of one modality"),
        (make_evaluation(heldout=[False] * 8), {}, "no image was held out"),
        (make_evaluation(gates=gates(4)), {"nan_steps": (2, 5)}, "not finite in 2 of 6 steps"),
        (make_evaluation(gates=gates(4)), {"nan_steps": range(6)}, "not finite in 6 of 6 steps"),
        (
            make_evaluation(squared_error=[np.nan] * 8, gates=[np.full((8, 4), np.nan)]),
            {},
            "cannot be measured",
        ),
        (make_evaluation(gates=gates(1, 20)), {"load": (1, 20)}, "Block 2"),
        (make_evaluation([], examples=make_examples([], [], [])), {}, "No image was evaluated"),
        (make_evaluation(gates=gates(*[2] * 9)), {"load": (2,) * 9}, "Routing over depth"),
        (make_evaluation(gates=gates(20)), {"load": (20,)}, "How far experts have grown apart"),
        (make_evaluation(gates=gates(1, 20)), {"moments": (0, 3)}, "Likeness of the experts over time"),
        (make_evaluation(gates=gates(*[2] * 12)), {"moments": (0, 3)}, "Likeness of the experts over time"),
    ],
)
def test_unusual_runs_get_a_sensible_page(tmp_path, monkeypatch, evaluation, written, expected):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)  # drawing is what takes the time
    build_report(write_run(tmp_path, evaluation, **written))
    assert expected in read(tmp_path).text


def test_the_lead_line_counts_skipped_steps_where_there_are_some(run, tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)
    folder = write_run(tmp_path, make_evaluation(), nan_steps=(2,))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), "grad_norm": None, "skipped": True})  # its loss is finite
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    build_report(folder)
    assert "6 steps, 2 of them skipped (loss or gradient not finite); reconstruction" in read(folder).text
    assert "The loss or its gradient was not finite in 2 of 6 steps." in read(folder).text
    assert "kipped" not in read(run).text


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "evaluation.npz", "analysis.npz"])
def test_a_missing_file_is_named_before_anything_is_written(tmp_path, name):
    folder = write_run(tmp_path, make_evaluation())
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        build_report(folder)
    assert not (folder / "report").exists()
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", b""),
        ("similarity.jsonl", b'{"step": 0, "blocks": [[[1]]]}\n'),
        ("config.yaml", b"{a: ["),
        ("config.yaml", b"- 1"),
        ("config.yaml", b"\xff\xfe\x00"),
        ("evaluation.npz", b"PK"),
        ("analysis.npz", b"PK"),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_written(tmp_path, name, content):
    folder = write_run(tmp_path, make_evaluation())
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        build_report(folder)
    assert not (folder / "report.html").exists()


def test_a_model_that_diverged_gets_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)
    evaluation = make_evaluation(gates=[np.full((8, 4), np.nan)])
    lost = make_analysis(evaluation)
    analysis = make_analysis(
        evaluation,
        features=np.full_like(lost.features, np.nan),
        patches=np.full_like(lost.patches, np.nan),
        patch_variance=np.zeros(3),
        gradient_cosines=np.full_like(lost.gradient_cosines, np.nan),
        expert_similarity=[np.full((5, 5), np.nan)],
    )
    build_report(write_run(tmp_path, evaluation, load=(4,), nan_steps=range(6), analysis=analysis))
    text = read(tmp_path).text
    assert "not finite in 6 of 6 steps" in text
    for title in ("Where images lie", "Do modalities pull", "grown apart", "sees as alike"):
        assert title not in text


def test_numbers_of_other_images_are_refused(tmp_path):
    other = make_analysis(make_evaluation([0, 1]))
    folder = write_run(tmp_path, make_evaluation(), analysis=other)
    with pytest.raises(ValueError, match=r"analysis\.npz: of 2 images and 3 examples, expected 8 and 3"):
        build_report(folder)
    assert not (folder / "report.html").exists()


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """Of 120 steps, with its report."""
    folder = tmp_path_factory.mktemp("runs") / "long"
    write_run(folder, make_evaluation(gates=gates(4)), steps=120, load=(4,), moments=range(0, 121, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dexcore.report.pictures._DPI", 30)
        build_report(folder)
    return folder


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (slice(0, 4), r"metrics\.jsonl: holds 4 steps, expected at least 120, .* similarity\.jsonl"),
        (slice(0, 119), r"metrics\.jsonl: holds 119 steps, expected at least 120"),
        (slice(4, 120), r"metrics\.jsonl, line 1: step 4, expected step 0"),
        (slice(0, 120, 2), r"metrics\.jsonl, line 2: step 2, expected step 1"),
    ],
)
def test_cut_off_steps_are_refused_and_the_report_of_all_steps_stays(long_run, tmp_path, cut, message):
    folder = shutil.copytree(long_run, tmp_path / "run")
    assert "120 steps; reconstruction loss" in read(folder).text
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[cut]))
    before = _contents(folder)
    with pytest.raises(ValueError, match=message):
        build_report(folder)
    assert _contents(folder) == before


def test_a_torn_last_step_is_refused_where_the_model_was_measured_after_it(tmp_path):
    folder = write_run(tmp_path, make_evaluation(gates=gates(4)), steps=6, load=(4,), moments=(0, 3, 6))
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"metrics\.jsonl: holds 5 steps, expected at least 6"):
        build_report(folder)


@pytest.mark.parametrize("moments", [(0, 12, 24, 36), (0, 12, 24, 36, 40)])
def test_a_run_that_was_stopped_between_two_moments_gets_the_report_of_its_steps(tmp_path, monkeypatch, moments):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)
    folder = write_run(tmp_path, make_evaluation(gates=gates(4)), steps=40, load=(4,), moments=moments)
    build_report(folder)
    assert "40 steps; reconstruction loss" in read(folder).text


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        build_report(tmp_path / "nowhere")


@pytest.mark.parametrize("lost", ["one number", "a block", "a moment"])
def test_similarities_that_are_no_numbers_are_left_out_of_the_experts_course(tmp_path, monkeypatch, lost):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)
    folder = write_run(tmp_path, make_evaluation(gates=gates(3, 2)), load=(3, 2), moments=(0, 2, 6))
    lines = [json.loads(line) for line in (folder / "similarity.jsonl").read_text().splitlines()]
    if lost == "one number":
        lines[1]["blocks"][0][3][1] = lines[1]["blocks"][0][1][3] = None
    for moment in [lines[2]] if lost == "a moment" else lines if lost == "a block" else []:
        moment["blocks"][0] = [[None] * 4] * 4
    (folder / "similarity.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_report(folder)
    assert "two experts 1.00 and 0.14, an expert and the director 1.00 and 0.57" in read(tmp_path).text


def test_the_page_shows_step_0_beside_each_figure_and_its_pictures_folded_away(tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)
    modality = np.repeat([0, 1, 2], 10)
    evaluation = make_evaluation(modality, gates=gates(4, 3, n=30))
    step0 = make_evaluation(
        modality, gates=[np.roll(one, 7, axis=0) for one in gates(4, 3, n=30)], squared_error=np.full(30, 1.25)
    )
    folder = write_run(tmp_path / "run", evaluation, load=(4, 3), moments=(0, 6), step0=step0)
    build_report(folder)
    text = read(folder).text
    assert "50.0 % on 18 real training images (2 modalities; -25.0 % at step 0)" in text
    assert "CT 0.500 -0.250, 9 0.500 -0.250, 1" in text
    assert "beyond chance" not in text
    assert "Mutual information minus its null, trained minus step 0: block 1 " in text
    assert "Against the same model before its first step: more variance is explained on training images" in text
    assert "evaluation_step0.npz, analysis_step0.npz beside this file" in text
    assert text.count("The same before the first step") == 3
    pictures = {path.name for path in (folder / "report").iterdir()}
    assert {
        f"{name}_step0.png" for name in ("reconstructions", "patches", "routing", "features", "gradients")
    } < pictures
    html = (folder / "report.html").read_text()
    assert html.index("Reconstructions (before the first step)") > html.index("<summary>The same before the first step")


def test_a_run_without_step_0_says_so_and_claims_nothing(run):
    text = read(run).text
    assert "What training changed cannot be said: step 0 was not measured (there is no evaluation_step0.npz" in text
    assert "beyond chance" not in text
    assert "The same before the first step" not in text


@pytest.mark.parametrize("lost", ["evaluation_step0.npz", "analysis_step0.npz"])
def test_half_of_step_0_is_not_compared(tmp_path, monkeypatch, lost):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)
    evaluation = make_evaluation(gates=gates(4))
    folder = write_run(tmp_path, evaluation, load=(4,), step0=evaluation)
    (folder / lost).unlink()
    assert build_report(folder).compared is None
    assert f"there is no {lost}, as" in read(folder).text


def test_step_0_of_other_images_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.report.pictures._DPI", 30)
    evaluation = make_evaluation(gates=gates(4))
    other = make_evaluation(gates=gates(4), sample_id=range(1, 9))
    build_report(write_run(tmp_path, evaluation, load=(4,), step0=other))
    assert "not measured on these images (run.evaluate_images was changed" in read(tmp_path).text


def test_a_damaged_step_0_is_named(tmp_path):
    evaluation = make_evaluation(gates=gates(4))
    folder = write_run(tmp_path, evaluation, load=(4,), step0=evaluation)
    (folder / "evaluation_step0.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"evaluation_step0\.npz"):
        build_report(folder)


def test_the_patch_mean_alone_stands_beside_the_prediction(tmp_path, monkeypatch):
    examples = make_examples([0], [False], [True])
    examples.input[:], examples.hidden[:] = [0, 0, 0], np.arange(24) < 12
    examples.patch_mean[:], examples.reconstruction[:] = [0, 1, 0], [1, 0, 0]
    build_report(write_run(tmp_path, make_evaluation(examples=examples)))
    pixels = np.asarray(Image.open(tmp_path / "report" / "reconstructions.png").convert("RGBA")).reshape(-1, 4)
    columns = {name: (pixels == (*color, 255)).all(axis=1).sum() for name, color in
               {"input": (0, 0, 0), "mean": (0, 255, 0), "prediction": (255, 0, 0)}.items()}  # fmt: skip
    assert columns["prediction"] > 0
    assert columns["mean"] == pytest.approx(columns["prediction"], rel=0.02)
    assert columns["input"] == pytest.approx(3 * columns["prediction"], rel=0.02)  # a whole column, and half of one
    assert "every hidden patch filled with its own mean" in read(tmp_path).text


_OF_ROUTERS = (
    "the router",
    "noise",
    "Do experts follow modalities?",
    "Routing over depth",
    "Block by block",
    "mutual information",
    "balance",
    "Starving",
    "starve at the end",
    "which routing was to prevent",
)


def write_twin(folder, mlp, **parts):
    write_run(folder, make_evaluation(gates=gates(4, 3)), load=(4, 3), moments=(0, 2, 6), **parts)
    costs = {"order_sha256": "0" * 64, "parameters": 1, "inference_flops": 1, "training_flops": 1}
    (folder / "comparison.json").write_text(json.dumps({"mlp": mlp, **costs}))
    (folder / "config.yaml").write_text(f"model:\n  mlp: {mlp}\ndex:\n  lambda_align: 0.01\n")
    return folder


@pytest.mark.parametrize(
    ("mlp", "finished"),
    [
        pytest.param("oracle-routing", True, marks=pytest.mark.slow),
        ("fixed-routing", False),
        pytest.param("dex", True, marks=pytest.mark.slow),
    ],
)
def test_where_a_rule_chooses_the_experts_the_report_says_nothing_of_a_router(tmp_path, mlp, finished):
    folder = write_twin(tmp_path / "run", mlp, step0=make_evaluation(gates=gates(4, 3)))
    if finished:
        told = "\n".join(build_report(folder).lines())
    else:
        (folder / "analysis.npz").unlink()
        told = "\n".join(report_unfinished(folder).lines())
    page = read(folder)
    text = page.text.replace("dex.noise_start, dex.lambda_balance, dex.balance_schedule", "")
    found = [words for words in _OF_ROUTERS if words in text or words in told]
    if mlp == "dex":
        assert found == list(_OF_ROUTERS)
        assert "Without effect" not in page.text
        return
    assert found == []
    assert "the rule gave it" in text
    assert "Without effect in this run: model.tau, dex.noise_start, dex.lambda_balance" in page.text
    if finished:
        assert "a rule chooses the experts, no router was trained" in told
        assert "that features through the experts tell it is no finding" in text
        names = {path.name for path in (folder / "report").iterdir()}
        assert {"load.png", "similarity.png", "losses.png", "schedules.png", "gradients.png"} <= names
        assert not names & {"starving.png", "specialization.png", "routing.png", "experts_block_01.png"}

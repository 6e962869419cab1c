"""What comes after the last step: the model's file, its evaluation and the report."""

from safetensors import SafetensorError

from dexcore.engine.folder import RunFolderError
from dexcore.evaluate.analyze import analyze
from dexcore.evaluate.reconstruct import evaluate
from dexcore.files import write_whole
from dexcore.models.card import CARD_FILE
from dexcore.models.objective import Objective
from dexcore.report import build_report
from dexcore.report.files import ANALYSIS_FILE, AVERAGED_FOLDER, EVALUATION_FILE, MODEL_FOLDER
from dexcore.train.loop import Pretraining
from dexcore.train.run.card import note_inputs, run_card


def save_averaged(run: Pretraining) -> None:
    """Save the model of the averaged weights, if they are kept; all ranks call it.

    Directors are those of the last step: averages of the experts as they are.

    Raises:
        RunFolderError: it cannot be written; nothing trained is lost.
        MainRankError: that happened on the main rank.
    """
    if not run.config.run.ema_decay:
        return

    def save() -> None:
        try:
            note_inputs(model, run.images, run.rows, run.config)
            model.save_pretrained(run.folder / AVERAGED_FOLDER)
        except (OSError, SafetensorError) as error:
            raise RunFolderError(
                f"{run.folder / AVERAGED_FOLDER}: the averaged model cannot be written: {error}"
            ) from error

    with run.optimizer.averaged():
        model = run.parallel.whole()
        run.ranks.on_main(save)


def finish(run: Pretraining, model: Objective) -> None:
    """Save the model, evaluate it, write the report and print the summary; the main rank's alone.

    Args:
        run: done.
        model: its model, in one piece.

    Raises:
        RunFolderError: the folder cannot be written (a full disk, for example); nothing trained is lost.
    """
    try:
        note_inputs(model, run.images, run.rows, run.config)
        model.save_pretrained(run.folder / MODEL_FOLDER)
        run.ranks.say("evaluating")
        evaluation = evaluate(model, run.images, run.config.setting, run.device)
        evaluation.save(run.folder / EVALUATION_FILE)
        analysis = analyze(model, run.images, evaluation, run.config.setting, run.device)
        analysis.save(run.folder / ANALYSIS_FILE)
        try:
            summary = build_report(run.folder)
        except ValueError as error:
            raise RunFolderError(f"{run.folder}: the training is done, its report cannot be made: {error}") from error
        card = run_card(model, run.images, run.config, summary)
        write_whole(run.folder / MODEL_FOLDER / CARD_FILE, card.encode())
    except (OSError, SafetensorError) as error:
        raise RunFolderError(
            f"{run.folder}: the training is done, its model and report cannot be written: {error}; "
            "go on with --resume when they can"
        ) from error
    print("\n".join(summary.lines()), flush=True)

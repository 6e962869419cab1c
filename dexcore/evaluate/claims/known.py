"""What DEX claims, and the number that each claim stands or falls with.

Margins are ours, and were set before anything was measured: the smallest effect for which one would take the trouble.
"""

from dexcore.evaluate.claims.effects import Asked
from dexcore.measures.verdicts import Verdict
from dexcore.report.claims import Claim

DEX, WIDE, FIXED, ORACLE, DENSE = ARMS = ("dex", "dense-wide", "fixed-routing", "oracle-routing", "dense")
_PAPER = "He, You, Li: Learning Emergent Modular Representations, KDD 2026, arXiv 2605.21861"
_SHARED = "across modalities, director"
_CONTROLS = {ORACLE: Verdict.SUPPORTED, FIXED: Verdict.REFUTED}

CLAIMS = (
    Asked(
        Claim(
            name="routing",
            title="Experts follow modalities",
            statement="Images of different modalities go to different experts, though no router is told a modality.",
            source=_PAPER,
            effect=(
                "Normalized mutual information of modality and expert minus that of labels permuted by case, the mean "
                "over blocks, on images that training never saw. 0 is chance, 1 one modality an expert."
            ),
            refuted_by="Information no higher than chance.",
            margin=0.1,
        ),
        DEX,
        "routing",
        controls=_CONTROLS,
    ),
    Asked(
        Claim(
            name="emergence",
            title="Training makes it so",
            statement="That experts follow modalities emerges in training; it is not there before the first step.",
            source=f"{_PAPER}; a router with random weights tells modalities apart too, by how images are exposed",
            effect="The same information, of the trained model minus that of the same model before its first step.",
            refuted_by="No more information after training than before.",
            margin=0.05,
        ),
        DEX,
        "routing",
        against_number="routing at step 0",  # no control: routes by a rule are the same before training and after
    ),
    Asked(
        Claim(
            name="specialization",
            title="Experts are of use to their modality",
            statement="A modality loses by those experts that it uses: they compute something that is its own.",
            source="What specialization must mean where it is no matter of routing alone",
            effect=(
                "Each expert of each layer is knocked out in turn. By how much more a modality's loss grows without an "
                "expert drawn as the modality uses them than without one drawn as all modalities do, as a share of the "
                "loss: the mean over layers, one expert of one layer being out. 0 for copies, and for experts that all "
                "use alike. Use is of training images, loss of images that training never saw."
            ),
            refuted_by="Losses that do not follow use: copies, or experts that all modalities need alike.",
            margin=0.005,  # of one layer alone: a few percent where every layer loses so much
        ),
        DEX,
        "specificity",
        controls=_CONTROLS,
    ),
    Asked(
        Claim(
            name="extraction",
            title="A modality's module can be cut out",
            statement="With the few experts that it uses most a modality loses less than with those that all use most.",
            source="What modular must mean, after EMO (arXiv 2605.06663) and Mod-Squad (arXiv 2212.08066)",
            effect=(
                "Each layer keeps as few experts as an image uses: those that the image's modality uses most, or those "
                "that all modalities together use most. By how much less the loss grows, as a share of the loss."
            ),
            refuted_by="Parts that serve a modality no better than common ones.",
            margin=0.02,
        ),
        DEX,
        "saved loss",
        controls=_CONTROLS,
    ),
    Asked(
        Claim(
            name="conflict",
            title="Modalities pull a dense model apart",
            statement="In a dense model the gradients of different modalities agree less than those of one modality.",
            source=f"{_PAPER}: the reason for experts",
            effect=(
                "1 minus the cosine of two modalities' gradients, as a part of the cosine that noise leaves between "
                "halves of one modality: 0 is one direction, 1 none in common, however noisy gradients are. Of "
                "dense-wide at the end of training, in the encoder's weights that DEX has too (no MLP)."
            ),
            refuted_by="Gradients that agree across modalities as they do within one.",
            margin=0.05,
        ),
        WIDE,
        "conflict",
        beside=((DEX, "conflict"), (FIXED, "conflict")),
    ),
    Asked(
        Claim(
            name="relief",
            title="Experts relieve the shared weights",
            statement="With experts the modalities pull the weights that they still share apart less.",
            source=f"{_PAPER}: what experts are for",
            effect="The same number, of the same weights: of dense-wide minus that of DEX.",
            refuted_by="Gradients that conflict in DEX as they do in the dense model.",
            margin=0.05,
        ),
        WIDE,
        "conflict",
        against_arm=DEX,
        beside=((FIXED, "conflict"), (ORACLE, "conflict")),
    ),
    Asked(
        Claim(
            name="shared-space",
            title="The director's space is shared",
            statement="In the director's features an image lies near images of its class of other modalities.",
            source=_PAPER,
            effect=(
                "Mean average precision of finding a class's training images of other modalities for a test image, "
                "above that of permuted classes, in the director's features, each modality around its mean. Beside it "
                "stands what the experts of the same model and the dense model find: a space may be shared in all of "
                "them."
            ),
            refuted_by="A director that finds classes across modalities no better than chance.",
            margin=0.02,
        ),
        DEX,
        _SHARED,
        beside=(
            *((DEX, "across modalities"), (WIDE, "across modalities")),
            *((arm, f"{number}, generated") for arm, number in ((DEX, _SHARED), (WIDE, "across modalities"))),
        ),
        minus=((DEX, "across modalities"), (WIDE, "across modalities")),
    ),
    Asked(
        Claim(
            name="transfer",
            title="Transfer beats a dense model",
            statement="On tasks with labels DEX is better than a dense model of equal FLOPs at inference.",
            source=_PAPER,
            effect=(
                "The linear probe of frozen features, the mean over tasks of the metric that each names: DEX minus "
                "dense-wide, trained on the same images in the same order."
            ),
            refuted_by="A dense model of equal FLOPs that is as good or better.",
            margin=0.01,
        ),
        DEX,
        "linear probe",
        against_arm=WIDE,
        beside=(
            *((arm, "linear probe") for arm in (DENSE, FIXED, ORACLE)),
            *((arm, "k-NN") for arm in (DEX, WIDE)),
            *((DEX, "linear probe, generated"), (WIDE, "linear probe, generated")),
        ),
    ),
    Asked(
        Claim(
            name="reconstruction",
            title="Hidden patches are predicted better",
            statement="DEX predicts more of hidden patches than a dense model of equal FLOPs at inference.",
            source="Not claimed by the paper; what pre-training optimizes, and so where a gain would show first",
            effect=(
                "The share of the variance inside hidden patches that is predicted, on images that training never saw, "
                "the mean over modalities: DEX minus dense-wide."
            ),
            refuted_by="A dense model of equal FLOPs that predicts as much or more.",
            margin=0.01,
        ),
        DEX,
        "variance explained",
        against_arm=WIDE,
        beside=tuple((arm, "variance explained") for arm in (DENSE, FIXED, ORACLE)),
    ),
)

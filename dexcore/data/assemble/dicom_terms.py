"""DICOM's words for modalities and body parts in MVU's. Nothing else of a header's text gets any further."""

from dexcore.data.modality import Modality

MODALITIES = {
    "CT": Modality.CT,
    "PT": Modality.PET,
    "MR": Modality.MR,
    **dict.fromkeys(("CR", "DX", "MG", "RF", "XA", "IO", "PX", "RG"), Modality.XRAY),
    **dict.fromkeys(("US", "IVUS"), Modality.ULTRASOUND),
    "OP": Modality.FUNDUS,
    **dict.fromkeys(("OPT", "OCT", "IVOCT"), Modality.OCT),
    "SM": Modality.PATHOLOGY,
    "ES": Modality.ENDOSCOPY,
    **dict.fromkeys(("XC", "DMS"), Modality.PHOTO),
}
# These say nothing about what is to be seen.
UNSPECIFIC = {"OT", "SC", "DOC"}
# None of the ten; named here so that a message repeats no text of a file's own.
OTHERS = {
    "NM": "nuclear medicine",
    "BI": "biomagnetic imaging",
    "BMD": "bone densitometry",
    "DG": "diaphanography",
    "ECG": "electrocardiography",
    "EPS": "electrophysiology",
    "GM": "general microscopy",
    "HD": "haemodynamics",
    "LEN": "lensometry",
    "LS": "laser surface scan",
    "OAM": "axial measurements of the eye",
    "OPM": "ophthalmic mapping",
    "TG": "thermography",
}
BODY_PARTS = {
    "ABDOMEN": "abdomen",
    "ABDOMENPELVIS": "abdomen",
    "ANKLE": "ankle",
    "ARM": "arm",
    "BRAIN": "brain",
    "BREAST": "breast",
    "CHEST": "chest",
    "CSPINE": "spine",
    "ELBOW": "elbow",
    "EXTREMITY": "extremity",
    "EYE": "eye",
    "FOOT": "foot",
    "HAND": "hand",
    "HEAD": "head",
    "HEADNECK": "head and neck",
    "HEART": "heart",
    "HIP": "hip",
    "KIDNEY": "kidney",
    "KNEE": "knee",
    "LEG": "leg",
    "LIVER": "liver",
    "LSPINE": "spine",
    "LUNG": "lung",
    "NECK": "neck",
    "PANCREAS": "pancreas",
    "PELVIS": "pelvis",
    "PROSTATE": "prostate",
    "SHOULDER": "shoulder",
    "SKIN": "skin",
    "SKULL": "skull",
    "SPINE": "spine",
    "THYROID": "thyroid",
    "TSPINE": "spine",
    "UTERUS": "uterus",
    "WHOLEBODY": "whole body",
    "WRIST": "wrist",
}


def modality_of(code: str | None) -> tuple[Modality | None, str]:
    """The modality of a DICOM file, else why it has none: "" where the file does not say, else words."""
    if code in MODALITIES:
        return MODALITIES[code], ""
    if code is None or code in UNSPECIFIC:
        return None, ""
    if code in OTHERS:
        return None, f"DICOM modality {code} ({OTHERS[code]}) is none of the ten"
    return None, "a DICOM modality that is none of the ten"


def anatomy_of(body_part: str | None) -> str:
    """MVU's word for DICOM's body part; "" for what is not in the table."""
    return BODY_PARTS.get((body_part or "").upper().replace(" ", "").replace("_", ""), "")

"""ScienceQA's prompt formats: what is asked, and what is answered, each letter a part.

Q question, C context, M options, L lecture, E explanation (`solution`), A answer.
"""

INPUTS = ("CQM", "QCM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUTS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA")
CAPTION = "caption"
"""The format that asks for a description of the image in place of the question."""

PROMPT_FORMATS = (*(f"{asked}-{answered}" for asked in INPUTS for answered in OUTPUTS), CAPTION)
ALLOWED = (
    f"INPUT-OUTPUT, with INPUT one of {', '.join(INPUTS)} and OUTPUT one of {', '.join(OUTPUTS)}, "
    f"or {CAPTION}"
)


def gives_reasons_first(prompt_format: str) -> bool:
    """Tell whether the answer comes after its lecture or explanation.

    >>> gives_reasons_first("QCM-LEA"), gives_reasons_first("QCM-ALE")
    (True, False)
    """
    output = prompt_format.partition("-")[2]
    return len(output) > 1 and output.endswith("A")

"""The losses of all arms, step by step."""

from pathlib import Path

STYLES = {
    "varifocal": ("Varifocal, layers compiled", "-", 4.0),
    "varifocal_plain": ("Varifocal", "-", 2.0),
    "paper_loop": ("the paper's loop", "--", 2.0),
    "trainer_peft": ("Trainer + PEFT", ":", 2.0),
    "before": ("an earlier Varifocal, layers compiled", "-.", 2.0),
    "before_plain": ("an earlier Varifocal", "-.", 1.0),
}


def draw_losses(losses: dict[str, list[float]], file: Path) -> None:
    """Draw the curves on top of one another.

    Args:
        losses: of each step, by arm.
        file: where the image goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for arm, values in losses.items():
        name, line, width = STYLES[arm]
        axes.plot(range(1, len(values) + 1), values, line, label=name, linewidth=width)
    axes.set(xlabel="step", ylabel="loss of supervised tokens")
    axes.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)

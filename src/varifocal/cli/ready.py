"""What every verb does before its slow imports."""

import warnings

from varifocal.registration import check_versions


def ready() -> None:
    """Check the libraries before their slow import, and keep their notices off the screen."""
    check_versions()
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    logging.disable_progress_bar()

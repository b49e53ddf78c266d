"""WSL, the Linux inside Windows. Loads no torch."""

import platform


def in_wsl() -> bool:
    """Return whether this process runs in WSL, or in a container there."""
    return "microsoft" in platform.release().lower()

"""The errors a user can meet; each message is one sentence that names the fix."""


class UserError(Exception):
    """Bad input: shown as one sentence on stderr, exit code 2, no traceback."""


class NotGranted(Exception):
    """An attack reached for something its threat model does not grant."""


class ContractError(Exception):
    """A plug-in broke its contract, say by returning the wrong number of images."""


class NotApplicable(Exception):
    """A component has nothing to work on here; the cell becomes a row with this reason."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""The errors a user can cause. Each message says what, where, what was expected and what to do."""


class UserError(Exception):
    """Something the user can fix; the command line prints the message alone and exits with its status."""

    status = 2


class SettingsError(UserError):
    """A setting that is unknown, impossible, or contradicts another."""


class CorpusError(UserError):
    """Text that is missing, unreadable, malformed or too small."""


class ArtefactError(UserError):
    """A run folder's file that is truncated, changed, or made by other settings."""


class ModelError(UserError):
    """A model, tokeniser or hook that cannot be loaded or does not exist."""


class ChatError(UserError):
    """A chat model that cannot be used: an endpoint that refuses or does not answer, or a malformed address."""


class TrainingError(UserError):
    """Training that cannot go on: a loss that is not finite, or that explodes."""


class Interrupted(UserError):
    """Ctrl-C during training: what was done is saved."""

    status = 130

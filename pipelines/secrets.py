"""What looks like a secret: Ray and MLflow write commands, environments and settings where others read them."""

import re

_NAME = re.compile(
    r"token|secret|passw|passphrase|(^|_|pg)pass(_|$)|(^|_)pwd$|.pwd_|credential|(api|access|private)key|(^|_)key(_|$)",
    re.IGNORECASE,
)
_PASSWORD_IN_URI = re.compile(r"://[^/\s@]*:[^/\s@]+@")


def is_name_of_secret(name: str) -> bool:
    """Whether an environment variable is named as those are that hold a token, a password or a key."""
    return bool(_NAME.search(name))


def has_password(text: str) -> bool:
    """Whether a text holds a URI with a password, as in scheme://user:password@host."""
    return bool(_PASSWORD_IN_URI.search(text))

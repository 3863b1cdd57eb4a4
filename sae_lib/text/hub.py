"""Whether the Hugging Face hub can be reached, tried once before use, and its many errors in one
line.
"""

import os
import re
import urllib.error
import urllib.request
from functools import lru_cache

OUT_OF_REACH = (
    "the hub cannot be reached; offline, use corpus=installation or corpus=files:PATH, and models "
    "and tokenisers in local folders"
)


@lru_cache(maxsize=1)
def reached() -> bool:
    """Whether the hub answers. Tried here because the hub's own libraries retry for a minute before
    they give up.
    """
    return reach_hub().startswith("reached")


def reach_hub() -> str:
    """ "reached" and the address, or why the hub cannot be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        return f"{url} out of reach: {getattr(error, 'reason', error)}"
    return f"reached {url}"


def problem(error: BaseException) -> str:
    """What went wrong with the hub and what to do about it, in one line."""
    names, messages, link = set(), "", error
    while link is not None:
        names |= {kind.__name__ for kind in type(link).__mro__}
        messages += f"{link} "
        link = link.__cause__ or link.__context__
    text = messages + " ".join(names)
    absent = re.search(
        r"not a valid model id|doesn't exist|\b(Repository|Revision)NotFoundError", text
    )
    if "GatedRepoError" in names or "gated" in messages and not absent:
        return (
            "gated: accept its terms on its page of the hub, then set HF_TOKEN to a token of your "
            "account"
        )
    if absent:
        return (
            "no such name or revision on the hub; check the spelling, and set HF_TOKEN if it is "
            "private"
        )
    if "couldn't connect" in messages or re.search("Connect|Timeout|Offline", " ".join(names)):
        return OUT_OF_REACH
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"

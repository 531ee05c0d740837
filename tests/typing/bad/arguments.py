"""Wrong arguments of the tracker, its settings and its options."""

from cio_batch import CioBatchTracker, HttpOptions, RetryOptions, Settings, SettledOperation
from cio_batch.transports import TrackV2Transport


def wrong_hook(operation: SettledOperation) -> None:
    """Takes an operation, where a chunk is given."""


def wrong_guard(text: str) -> str:
    """Takes a text, where a draft is given."""
    return text


fine = CioBatchTracker(Settings(region="eu"), overflow="drop_oldest", retry=RetryOptions(jitter="full"))

CioBatchTracker(overflow="drop")  # error
CioBatchTracker(batch_size="50")  # error
CioBatchTracker(50)  # error
CioBatchTracker(flush_intervall=1.0)  # error
CioBatchTracker(on_settled=wrong_hook)  # error
CioBatchTracker(before_enqueue=wrong_guard)  # error
CioBatchTracker(transport=TrackV2Transport)  # error
CioBatchTracker(transport=object())  # error
CioBatchTracker(retry=3)  # error
CioBatchTracker(spool="events.db")  # error
CioBatchTracker(on_dead_letter=wrong_hook)  # error
CioBatchTracker().update_credentials("site")  # error
Settings("site", "key")  # error
Settings(region="us-east")  # error
Settings(track_api_key=b"key")  # error
Settings().track_origin = "https://example.com"  # error
RetryOptions(jitter="none")  # error
RetryOptions(max_retries=None)  # error
HttpOptions(proxy=("http://proxy", 80))  # error
HttpOptions(total_timeout=None)  # error
TrackV2Transport()  # error

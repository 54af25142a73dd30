"""A request that goes on, as the server has it: makes text of its tokens, and stops it."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.serving.requests.served_request import ServedPiece, ServedRequest
from hyparflow.serving.requests.stop_strings import StopStrings
from hyparflow.serving.requests.text import StreamedText
from hyparflow.serving.scheduling.request import EndReason, RequestProgress

__all__ = ["OpenRequest"]


@dataclass
class OpenRequest:
    """A request that goes on.

    Attributes:
        served: what its caller has.
        text: makes text of its tokens; None if nobody wants any.
        stops: ends the text.
        deadline: of `time.monotonic`; None to wait as long as it takes.
        count: tokens that came.
    """

    served: ServedRequest
    text: StreamedText | None
    stops: StopStrings
    deadline: float | None
    count: int = 0

    def take(self, progress: RequestProgress) -> EndReason | None:
        """Give its caller what came: why it has ended, which may be a stop string."""
        end, text = progress.end, ""
        if self.text is not None:
            text = self.text.add(progress.tokens, is_last=end is not None)
            text = self.stops.add(text, is_last=end is not None)
            if self.stops.has_stopped:
                end = EndReason.STOP
        self.count += len(progress.tokens)
        self.served.take(ServedPiece(text, progress.tokens, progress.logprobs), end)
        return end

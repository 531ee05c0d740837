"""Which call of the Track API or the App API a request line asks for.

Rules:

1. The raw path is split first and each part is decoded once, afterwards: ``%2F`` stays inside its part and
   ``%2525`` becomes ``%25``, so that an identifier arrives as the caller meant it.
2. An empty part matches nothing: an identifier cannot be empty.
3. A path that the App API does not know is answered as a wrong method (405), as its documentation says of a
   misspelt one.

This module must not know what the calls do.

Source: track-openapi.json, paths; for the App API docs.customer.io/integrations/api/app.
"""

from typing import Final, Literal
from urllib.parse import unquote

import attrs

_APP: Final = "/v1/"
"""Where the App API's paths begin; no path of the Track API does."""


@attrs.frozen
class Route:
    """One call of Customer.io; ``template`` is the path as the published document writes it."""

    name: str
    method: str
    template: str
    needs_auth: bool = True

    @property
    def api(self) -> Literal["track", "app"]:
        """The API, which decides the credentials and the form of the errors."""
        return "app" if self.template.startswith(_APP) else "track"

    @property
    def version(self) -> int:
        """The version of the Track API, which decides the form of its errors."""
        return 2 if self.name in ("batch", "entity") else 1


@attrs.frozen
class Target:
    """A route, and the decoded parts of the path that its template names."""

    route: Route
    parts: dict[str, str]


ROUTES: Final = (
    Route("batch", "POST", "/api/v2/batch"),
    Route("entity", "POST", "/api/v2/entity"),
    Route("track", "POST", "/api/v1/customers/{identifier}/events"),
    Route("identify", "PUT", "/api/v1/customers/{identifier}"),
    Route("delete", "DELETE", "/api/v1/customers/{identifier}"),
    Route("add_device", "PUT", "/api/v1/customers/{identifier}/devices"),
    Route("delete_device", "DELETE", "/api/v1/customers/{identifier}/devices/{device_id}"),
    Route("suppress", "POST", "/api/v1/customers/{identifier}/suppress"),
    Route("unsuppress", "POST", "/api/v1/customers/{identifier}/unsuppress"),
    Route("track_anonymous", "POST", "/api/v1/events"),
    Route("merge", "POST", "/api/v1/merge_customers"),
    Route("add_customers", "POST", "/api/v1/segments/{segment_id}/add_customers"),
    Route("remove_customers", "POST", "/api/v1/segments/{segment_id}/remove_customers"),
    Route("submit_form", "POST", "/api/v1/forms/{form_id}/submit"),
    Route("report_metric", "POST", "/api/v1/metrics", needs_auth=False),
    Route("report_push", "POST", "/api/v1/push/events", needs_auth=False),
    Route("unsubscribe", "POST", "/unsubscribe/{delivery_id}", needs_auth=False),
    Route("region", "GET", "/api/v1/accounts/region"),
    Route("email", "POST", "/v1/send/email"),
    Route("push", "POST", "/v1/send/push"),
    Route("sms", "POST", "/v1/send/sms"),
    Route("whatsapp", "POST", "/v1/send/whatsapp"),
    Route("inbox_message", "POST", "/v1/send/inbox_message"),
    Route("in_app", "POST", "/v1/send/in_app"),
    Route("trigger_broadcast", "POST", "/v1/campaigns/{broadcast_id}/triggers"),
)

_TEMPLATES: Final = tuple((route, tuple(route.template.split("/"))) for route in ROUTES)


def split_path(raw_path: str) -> list[str]:
    """Split a raw path (a query is cut off) into its parts, each decoded once.

    Raises:
        UnicodeDecodeError: A part's bytes are not UTF-8.
    """
    path = raw_path.partition("?")[0]
    return [unquote(part, errors="strict") for part in path.split("/")]


def find_target(method: str, raw_path: str) -> Target | int:
    """Find the call that a request line asks for.

    Returns:
        The target; or the status to refuse with: 404, 405, or 400 for a path that is not UTF-8.
    """
    try:
        parts = split_path(raw_path)
    except UnicodeDecodeError:
        return 400
    status = 405 if raw_path.startswith(_APP) else 404
    # The literal parts are compared as they stand in the raw path: an encoded "events" is no keyword.
    literals = raw_path.partition("?")[0].split("/")
    for route, template in _TEMPLATES:
        if len(template) != len(parts) or not _matches(template, literals):
            continue
        if route.method == method:
            named = {name[1:-1]: part for name, part in zip(template, parts, strict=True) if name.startswith("{")}
            return Target(route, named)
        status = 405
    return status


def _matches(template: tuple[str, ...], literals: list[str]) -> bool:
    return all(
        part != "" if name.startswith("{") else name == part for name, part in zip(template, literals, strict=True)
    )

"""Wrong fields of typed events, and events that a tracker does not take."""

from typing import Literal

from cio_batch import CioBatchTracker, CioEvent, EventSchemaError, Taxonomy, UserAttributes, operations


class SignedUp(CioEvent, name="signed_up"):
    """One event."""

    method: Literal["email", "sso"]
    source: str | None = None


class PlanChanged(CioEvent, name="plan_changed"):
    """Another one."""

    from_: str
    to: str
    mrr: float


class Elsewhere(CioEvent, name="elsewhere"):
    """One that is no part of the union."""


class Customer(UserAttributes):
    """Attributes with one of their own."""

    seats: int


AppEvent = SignedUp | PlanChanged

fine = PlanChanged(from_="free", to="pro", mrr=49)
good = Customer(email="a@example.com", plan="pro", seats=5)

SignedUp()  # error
SignedUp("email")  # error
SignedUp(method="fax")  # error
SignedUp(method="email", sources="web")  # error
SignedUp(method="email", source=5)  # error
PlanChanged(from_="free", to="pro", mrr="49")  # error
PlanChanged(from_=None, to="pro", mrr=49)  # error
PlanChanged(to="pro", mrr=49)  # error
fine.mrr = 50  # error
str(fine.plan)  # error
number: int = fine.to  # error
Customer(email="a@example.com")  # error
Customer(seats=5)  # error
Customer(email="a@example.com", seats=5, plan="gold")  # error
Customer(email="a@example.com", seats=5, extra=["age"])  # error
Customer(email="a@example.com", seats=5, created_at="2024")  # error


class Nameless(CioEvent, nmae="typo"):  # error
    """A class argument that does not exist."""


class Numbered(CioEvent, name=5):  # error
    """A name that is no text."""


async def use(tracker: CioBatchTracker[AppEvent], plain: CioBatchTracker, signups: CioBatchTracker[SignedUp]) -> None:
    """Every marked line is a mistake."""
    await tracker.enqueue("u", fine)
    await tracker.enqueue("u", Elsewhere())  # error
    await tracker.enqueue("u", fine, {"to": "pro"})  # error
    await tracker.enqueue("u", PlanChanged)  # error
    await tracker.enqueue(5, fine)  # error
    await tracker.enqueue("u", good)  # error
    tracker.enqueue_nowait("u", Elsewhere())  # error
    tracker.enqueue_threadsafe("u", Elsewhere())  # error
    await signups.enqueue("u", fine)  # error
    await plain.enqueue("u", 5)  # error
    wider: CioBatchTracker = tracker  # error
    other: CioBatchTracker[AppEvent] = signups  # error
    narrower: CioBatchTracker[SignedUp] = tracker
    operations.event("u", good)  # error
    str((wider, other, narrower))


CioBatchTracker[str]()  # error
CioBatchTracker(taxonomy=AppEvent)  # error
CioBatchTracker(strict="yes")  # error
Taxonomy(5)  # error
Taxonomy(Customer)  # error
Taxonomy(AppEvent).validate(fine)  # error
EventSchemaError("plan_changed", "mrr")  # error

"""A taxonomy: typed events that the editor, the type checkers and the run time know, as one union.

Run it like ``quickstart.py``: ``python examples/taxonomy.py``. Then, in this folder, write it as JSON Schema:
``cio-batch taxonomy export taxonomy:AppEvent``.
"""

import asyncio

from cio_batch import CioBatchTracker, CioEvent, Settings, Taxonomy, UserAttributes


class SignedUp(CioEvent, name="signed_up"):
    """Somebody has an account now."""

    method: str
    source: str | None = None  # stays off the wire unless it is set


class PlanChanged(CioEvent, name="plan_changed"):
    """Somebody pays more, or less."""

    from_: str  # "from" on the wire: one trailing underscore is dropped
    to: str
    mrr: float


class FeatureUsed(CioEvent, name="feature_used"):
    """Somebody used a feature."""

    feature: str
    duration_ms: int | None = None


class CheckoutCompleted(CioEvent, name="checkout_completed"):
    """Somebody bought something."""

    order_id: str
    total: float
    items: int


class SubscriptionCancelled(CioEvent, name="subscription_cancelled"):
    """Somebody leaves."""

    reason: str
    feedback: str | None = None


AppEvent = SignedUp | PlanChanged | FeatureUsed | CheckoutCompleted | SubscriptionCancelled


async def main(settings: Settings) -> None:
    """Send each event; a wrong field would be an error in the editor, and one more at run time."""
    async with CioBatchTracker[AppEvent](settings, taxonomy=Taxonomy(AppEvent)) as tracker:
        await tracker.identify("user-1", UserAttributes(email="ada@example.com", plan="pro"))
        await tracker.enqueue("user-1", SignedUp(method="email"))
        await tracker.enqueue("user-1", PlanChanged(from_="free", to="pro", mrr=49.0))
        await tracker.enqueue("user-1", FeatureUsed(feature="export", duration_ms=120))
        await tracker.enqueue("user-1", CheckoutCompleted(order_id="A-7", total=12.5, items=3))
        await tracker.enqueue("user-1", "subscription_cancelled", {"reason": "moved"})  # checked, too


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))

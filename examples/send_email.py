"""A transactional email with an attachment: sent at most once, and an error of its own where nobody knows.

Run it like ``quickstart.py``, with ``CUSTOMERIO_APP_API_KEY`` too: ``python examples/send_email.py``.
"""

import asyncio

from cio_batch import ApiError, CioAppClient, EmailRequest, SendOutcomeUnknownError, Settings


async def main(settings: Settings) -> None:
    """Send an invoice."""
    request = EmailRequest(
        to="ada@example.com",
        transactional_message_id="invoice",
        identifiers="user-1",
        message_data={"number": "A-7", "total": 12.5},
        attachments={"invoice.txt": b"A-7: 12.50"},
    )
    async with CioAppClient(settings) as client:
        try:
            receipt = await client.send_email(request)
        except SendOutcomeUnknownError as error:
            print("look before you send it again:", error.reason)
        except ApiError as error:
            print("not sent:", error)
        else:
            print("sent as", receipt.delivery_id)


if __name__ == "__main__":
    asyncio.run(main(Settings.from_env()))

"""A local Customer.io for tests, demos and development: real HTTP, both APIs' answers, faults on order.

One server is the Track API and the App API.

Everything here is written from Customer.io's published document alone and imports nothing from the rest of
``cio_batch``, so that it cannot share the client's mistakes.

========================  =========================================================================
``server``                ``Simulator``: HTTP, credentials, the answers, faults carried out, start and stop
``control``               the calls under ``/simulator/``, for other processes
``calls``                 one request's body → its operations, valid and refused
``v1``                    Track v1 calls, said in Track v2's form
``app``                   App API calls: messages and broadcasts
``rates``                 the App API's rates, for whoever wants them enforced
``routes``                request line → which call, its path decoded once
``checks``                one operation → what the service would refuse in it
``workspace``             what the workspace holds, and how one operation changes it
``traffic``               counts on the wire; whether two calls held one person at a time
``faults``                which fault the next call meets
``keys``                  whom an operation names
========================  =========================================================================

Only ``server`` knows aiohttp and the loop; the others are pure.
"""

from cio_batch.simulator.faults import KINDS, Fault, Faults, Kind, Options
from cio_batch.simulator.rates import AppRates
from cio_batch.simulator.server import Simulator
from cio_batch.simulator.traffic import Traffic
from cio_batch.simulator.workspace import Broadcast, Message, Object, Person, Workspace

__all__ = [
    "KINDS",
    "AppRates",
    "Broadcast",
    "Fault",
    "Faults",
    "Kind",
    "Message",
    "Object",
    "Options",
    "Person",
    "Simulator",
    "Traffic",
    "Workspace",
]

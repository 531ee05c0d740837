"""Wrong operations, and wrong orders to the simulator."""

from cio_batch import CioObjectId, Draft, Email, ObjectId, Relationship, operations
from cio_batch.simulator import Fault, Faults, Kind, Simulator

operations.event("u", "e")
operations.event(Email("a@b"), "e", {"n": 1}, timestamp=1)

operations.event(17, "e")  # error
operations.page(ObjectId("1", "acme"), "/")  # error
operations.screen("u", None)  # error
operations.anonymous_event("cookie", "e", action="click")  # error
operations.add_device("u", "token", "Android")  # error
operations.delivery_event("d", "clicked", "token")  # error
operations.merge("u")  # error
operations.add_relationships("u", ["acme"])  # error
operations.add_relationships("u", ObjectId("1", "acme"))  # error
operations.identify_object("acme", {"seats": 5})  # error
operations.identify_object(CioObjectId("ob1"), relationships=[CioObjectId("ob2")])  # error
operations.identify_anonymous_object(ObjectId("1", "acme"), relationships=["u"])  # error
operations.delete_object(ObjectId("acme"))  # error
operations.subscribe("u")  # error
operations.encode(operations.event("u", "e"))  # error
ObjectId(1, "acme")  # error
Relationship(5)  # error
Email("a@b").value = "c@d"  # error
Draft("person.event")  # error
Draft(kind=operations.event)  # error

kind: Kind = "earthquake"  # error
Faults({"earthquake": 0.1})  # error
Faults().order("latency", seconds=1)  # error
Faults().order("latency", latency="1")  # error
Fault("latency")  # error
Simulator(port="8080")  # error

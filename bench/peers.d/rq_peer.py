"""rq: enqueue_many of 500, SimpleWorker (no fork per job, which is five times slower), results not kept."""
import os, sys
sys.path.insert(0, os.environ["PEERS_D"])
from common import Handler, MODE, produce
from redis import Redis
from rq import Queue, SimpleWorker

connection = Redis(port=int(os.environ["REDIS_PORT"]))
queue = Queue("bench", connection=connection)
handler = Handler()


def noop(text):
    sys.modules["__main__"].handler.handle(text)


if MODE == "produce":
    produce(500, lambda batch: queue.enqueue_many([Queue.prepare_data("rq_peer.noop", (p,), result_ttl=0) for p in batch]))
    os._exit(0)
sys.modules["rq_peer"] = sys.modules["__main__"]
print("READY", flush=True)
SimpleWorker([queue], connection=connection).work(logging_level="ERROR")

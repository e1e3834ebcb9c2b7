"""Celery: solo pool (the fastest measured here), prefetch 100, results ignored, early acknowledgement."""
import os, sys
sys.path.insert(0, os.environ["PEERS_D"])
from common import Handler, MODE, produce
from celery import Celery, signals

app = Celery("peer", broker=f"redis://127.0.0.1:{os.environ['REDIS_PORT']}/0", backend=None)
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=100, worker_send_task_events=False, task_send_sent_event=False,
                worker_redirect_stdouts=False)
handler = Handler()


@app.task(name="noop")
def noop(text):
    handler.handle(text)


@signals.worker_ready.connect
def ready(**_):
    print("READY", flush=True)


if MODE == "produce":
    with app.producer_pool.acquire(block=True) as producer:
        produce(1, lambda batch: noop.apply_async((batch[0],), producer=producer))  # Celery has no bulk call
    os._exit(0)
app.worker_main(["worker", "-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "error"])

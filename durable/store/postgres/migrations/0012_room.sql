-- Room on their pages for what is always updated once: the payloads of a run that ends, an attempt that goes on. With half a page free
-- no such update touches an index. Pages that are there keep what is on them.
ALTER TABLE durable.run_payload SET (fillfactor = 50);
ALTER TABLE durable.attempt SET (fillfactor = 50);

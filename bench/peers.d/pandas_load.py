"""pandas: read_csv in chunks of 100,000, the same cleaning, COPY through psycopg2 (the fastest way it has into PostgreSQL)."""
import io, sys
import pandas, psycopg2

path, dsn, table = sys.argv[1:]
connection = psycopg2.connect(dsn)
types = {"customer_id": "int32", "qty": "int16", "country": "str", "sku": "str", "status": "str"}
with connection, connection.cursor() as cursor:
    for chunk in pandas.read_csv(path, chunksize=100_000, parse_dates=["created_at", "ship_date"], dtype=types):
        chunk = chunk.dropna(subset=["order_id"])
        chunk["order_id"] = chunk["order_id"].astype("int64")
        chunk["country"] = chunk["country"].str.upper()
        text = io.StringIO()
        chunk.to_csv(text, index=False, header=False)
        text.seek(0)
        cursor.copy_expert(f"copy {table} from stdin (format csv)", text)

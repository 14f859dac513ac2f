-- Schema 3 of the cache. Change it only together with a step in migrations.py.
-- No primary keys and no indexes: one writer thread keeps names unique, and an ART index costs inserts 4x and
-- the file 2.4x for no faster look-up. Times are UTC.
CREATE TABLE meta (name VARCHAR, value VARCHAR);

CREATE TABLE results (
  key VARCHAR, analysis VARCHAR, version INTEGER, table_name VARCHAR, title VARCHAR,
  spec VARCHAR, step BIGINT, model VARCHAR, fingerprint VARCHAR, dtype VARCHAR, device VARCHAR,
  subject VARCHAR, params VARCHAR, provenance VARCHAR, card VARCHAR, tokenizer VARCHAR, job_id VARCHAR,
  created TIMESTAMP, last_used TIMESTAMP, seconds DOUBLE, bytes BIGINT, rows BIGINT,
  pinned BOOLEAN DEFAULT false
);

-- n counts the blobs of one result from 0. Either data (codec zstd or raw) or path (codec safetensors) is set.
CREATE TABLE arrays (
  key VARCHAR, n INTEGER, column_name VARCHAR, part VARCHAR, shape VARCHAR, dtype VARCHAR, codec VARCHAR,
  data BLOB USING COMPRESSION uncompressed, path VARCHAR
);

CREATE TABLE tokenizers (hash VARCHAR, data BLOB USING COMPRESSION uncompressed);
CREATE TABLE models (
  spec VARCHAR, step BIGINT, signature VARCHAR, card VARCHAR, tokenizer VARCHAR, last_used TIMESTAMP
);

-- folder_offset: bytes of metrics.jsonl already here; committed with the rows they made
CREATE TABLE runs (name VARCHAR, folder VARCHAR, info VARCHAR, folder_offset BIGINT, created TIMESTAMP);
CREATE TABLE metrics (
  run VARCHAR, step BIGINT, metric VARCHAR, layer INTEGER, head INTEGER, value DOUBLE, time DOUBLE
);
-- what detection said of a run when it had ended; low, high and step in steps, widths in ln(step), channels JSON
CREATE TABLE transitions (
  run VARCHAR, metric_group VARCHAR, step DOUBLE, low DOUBLE, high DOUBLE, width DOUBLE, width_low DOUBLE,
  width_high DOUBLE, verdict VARCHAR, method VARCHAR, channels VARCHAR, alarm_step BIGINT, delay DOUBLE, score DOUBLE,
  threshold DOUBLE, size DOUBLE, artefact VARCHAR, exogenous VARCHAR, detector INTEGER, metrics_offset BIGINT,
  created TIMESTAMP
);
-- one row per run that was looked at, also where nothing was found
CREATE TABLE transitions_seen (run VARCHAR, detector INTEGER, metrics_offset BIGINT, created TIMESTAMP);

CREATE TABLE jobs (
  id VARCHAR, key VARCHAR, kind VARCHAR, state VARCHAR, created DOUBLE, finished DOUBLE, record VARCHAR
);

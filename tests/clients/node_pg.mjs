// node-postgres against a server: pool, parameters, prepared statements, cursors, errors.
//
// Connects by the PG… variables of the environment; expects the table `cpu` of
// tests/clients.rs. NODE_MODULES names the folder that holds `pg` and `pg-cursor`.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const require = createRequire(process.env.NODE_MODULES + '/');
const pg = require('pg');
const Cursor = require('pg-cursor');

const pool = new pg.Pool({ max: 3 });
const client = await pool.connect();

let result = await client.query(
  'SELECT host, n, usage, ok, time FROM cpu WHERE host = $1 AND n > $2 ORDER BY n LIMIT 1',
  ['h1', 2],
);
assert.deepEqual(result.rows, [
  { host: 'h1', n: '5', usage: 5.5, ok: false, time: new Date('2024-01-01T00:00:05Z') },
]);
assert.equal(result.command, 'SELECT');

result = await client.query('SELECT count(*) FROM cpu WHERE time >= $1', [
  new Date('2024-01-01T00:01:30Z'),
]);
assert.deepEqual(result.rows, [{ count: '10' }]);

result = await client.query('SELECT count(*) AS c FROM cpu WHERE n = ANY($1)', [[1, 2, 3]]);
assert.equal(result.rows[0].c, '3');
result = await client.query('SELECT count(*) AS c FROM cpu WHERE host = ANY($1)', [['h0', 'h1']]);
assert.equal(result.rows[0].c, '50');

for (let number = 0; number < 3; number += 1) {
  const named = { name: 'less', text: 'SELECT count(*) AS c FROM cpu WHERE n < $1', values: [number] };
  assert.equal((await client.query(named)).rows[0].c, String(number));
}

result = await client.query('SELECT 1 AS a; SELECT 2 AS b');
assert.deepEqual(result.map((each) => each.rows), [[{ a: 1 }], [{ b: 2 }]].map((rows) => rows.map(numbers)));

await client.query('BEGIN');
const cursor = client.query(new Cursor('SELECT n FROM cpu ORDER BY n'));
assert.deepEqual((await cursor.read(2)).map((row) => row.n), ['0', '1']);
assert.equal((await cursor.read(200)).length, 98);
await cursor.close();
await client.query('COMMIT');

await assert.rejects(client.query('SELECT * FROM missing'), (error) => error.code === '42P01');
await client.query('CREATE TABLE noded (time TIMESTAMP TIME INDEX, host TEXT TAG, v DOUBLE)');
result = await client.query('INSERT INTO noded (time, host, v) VALUES ($1, $2, $3), ($4, $2, NULL)', [
  new Date('2024-01-01T00:00:00Z'), 'h', 1.5, new Date('2024-01-01T00:00:01Z'),
]);
assert.equal(result.rowCount, 2);
result = await client.query('SELECT v FROM noded ORDER BY time');
assert.deepEqual(result.rows, [{ v: 1.5 }, { v: null }]);

client.release();
const counts = await Promise.all(
  [...Array(10).keys()].map((n) => pool.query('SELECT count(*) AS c FROM cpu WHERE n < $1', [n])),
);
assert.deepEqual(counts.map((each) => each.rows[0].c), [...Array(10).keys()].map(String));
await pool.end();
console.log('node-postgres: ok');

// Integer literals are 64-bit here, which node-postgres hands out as text.
function numbers(row) {
  return Object.fromEntries(Object.entries(row).map(([key, value]) => [key, String(value)]));
}

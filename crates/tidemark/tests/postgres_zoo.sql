-- A table of what has a binary form here, one of what goes as text, one of both.
CREATE SCHEMA zoo;
CREATE TYPE zoo.mood AS ENUM ('sad', 'so-so', 'Größe, "x"');
CREATE DOMAIN zoo.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN zoo.smallish AS zoo.positive CHECK (VALUE < 100);
CREATE DOMAIN zoo.list AS int[];
CREATE TYPE zoo.pair AS (a int, "B b" text);
CREATE TYPE zoo.span AS RANGE (subtype = float8);

CREATE TABLE zoo.native (
  id bigint PRIMARY KEY, a bool, b int2, c int4, d int8, e float4, f float8, g numeric,
  h numeric(12,3), i text, j varchar(20), k char(8), l name, m bytea, n date, o timestamp,
  p timestamptz, q uuid, r json, s jsonb, t zoo.mood, u zoo.smallish, v timestamp(0),
  "Größe""x" text, w bpchar);
INSERT INTO zoo.native (id) VALUES (0);
INSERT INTO zoo.native VALUES
 (1, true, -32768, -2147483648, -9223372036854775808, 0.1, 0.1, 1.50, 123456789.123, E'tab\tnew\nline\\back\r', 'v', 'pad', 'n', '\x00ff', '2024-02-29', '2024-02-29 23:59:59.999999', '2024-02-29 23:59:59.000001+05:45', '00112233-4455-6677-8899-aabbccddeeff', '{"a" :  1, "a":2}', '{"b":1,"a":[null]}', 'sad', 5, '2024-01-01', 'x', 'trail  '),
 (2, false, 32767, 2147483647, 9223372036854775807, 'NaN', 'NaN', 'NaN', 'NaN', '', '', '', '', '', 'infinity', 'infinity', 'infinity', '00000000-0000-0000-0000-000000000000', 'null', 'null', 'Größe, "x"', 99, 'infinity', '', ''),
 (3, NULL, 0, 0, 0, '-Infinity', '-Infinity', -0.00000000000000000001, 0.000, '\N', '\.', NULL, NULL, NULL, '-infinity', '-infinity', '-infinity', NULL, '"x"', '12345678901234567890.10', NULL, NULL, NULL, '\.', ' '),
 (4, NULL, 0, 0, 0, '-0', '-0', 1e300, 0, 'ünïcödé 漢字 🐘', NULL, NULL, NULL, NULL, '4713-01-01 BC', '4713-01-01 00:00:00 BC', '4713-01-01 00:00:00+00 BC', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
 (5, NULL, 0, 0, 0, 3.4e38, 1.7976931348623157e308, 0.0000, 1, NULL, NULL, NULL, NULL, NULL, '5874897-12-31', '294246-12-31 23:59:59', '294246-12-31 23:59:59+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
 (6, NULL, 0, 0, 0, 1e-45, 5e-324, 99999999999999999999999999999999999999.99, 1, NULL, NULL, NULL, NULL, NULL, '0001-12-31 BC', '0001-12-31 23:59:59.5 BC', '0001-12-31 23:59:59.5+00 BC', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE zoo.printed (
  id int PRIMARY KEY, a int[], b text[], c zoo.pair, d zoo.list, e int4range, f zoo.span,
  g interval, h time, i timetz, j inet, k cidr, l macaddr, m bit(5), n varbit, o tsvector,
  p tsquery, q xml, r money, s point, t polygon, u zoo.mood[], v zoo.pair[], w oid, x "char",
  y pg_lsn, z macaddr8, aa regclass, ab path, ac numeric[], ad jsonb[], ae timestamptz[],
  af bytea[], ag circle, ah tstzrange, ai int[][], aj regtype, ak uuid[]);
INSERT INTO zoo.printed (id) VALUES (0);
INSERT INTO zoo.printed VALUES
 (1, '{1,NULL,3}', ARRAY['a', NULL, 'NULL', '', '"q\', E't\tn\n'], ROW(1, E'x "y" \\ ,\n'), '{1}', '[1,5)', '[1.5,2.5]', '1 year -2 mons +3 days -04:05:06.789', '23:59:59.999999', '12:00:00+05:45', '10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', B'1', 'a fat cat', 'fat & (rat | !cat)', '<a b="c">x &amp; y</a>', -1234.56, '(0.1,1e300)', '((0,0),(1,1),(1,0))', '{sad,"Größe, \"x\""}', ARRAY[ROW(1, 'a'), NULL, ROW(NULL, NULL)]::zoo.pair[], 4294967295, 'c', '16/B374D848', '08:00:2b:01:02:03:04:05', 'zoo.native', '[(0,0),(1,1)]', '{1.50,NaN,-0.0}', ARRAY['{"a": [1]}'::jsonb], '{"2024-01-01 00:00:00+05","infinity"}', ARRAY['\x00ff'::bytea], '<(1,2),3>', '[2024-01-01 00:00:00+00,)', '{{1,2},{3,4}}', 'zoo.mood', '{00112233-4455-6677-8899-aabbccddeeff}'),
 (2, '{}', '{}', ROW(NULL, NULL), NULL, 'empty', '(,)', '-178000000 years', '24:00:00', '00:00:00-15:59', '::1', '2001:db8::/32', NULL, NULL, B'', '', '', 'text only', 0, NULL, NULL, '{}', '{}', 0, '', '0/0', NULL, NULL, NULL, '{}', '{}', '{}', '{}', NULL, 'empty', '{}', NULL, '{}'),
 (3, '[5:6]={1,2}', NULL, NULL, NULL, '(,5]', NULL, '00:00:00', '00:00:00.000001', NULL, '192.168.1.5/24', NULL, NULL, B'00000', NULL, '''it''''s'':1A b:2,3', NULL, '<?xml version="1.0" standalone="yes"?><x/>', NULL, NULL, NULL, NULL, NULL, NULL, E'\\', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE zoo.mixed (
  k1 text, k2 numeric(20,4), k3 timestamptz, a int[], b float4, c float8, d bool, e bytea, f date,
  g timestamp, h timestamptz, i uuid, j numeric, k char(5), l jsonb, m zoo.mood,
  PRIMARY KEY (k1, k2, k3));
INSERT INTO zoo.mixed VALUES
 (E'a\tb\\', 1.5, '0044-03-15 12:00:00+00 BC', '{1}', 0.1, 1e300, true, '\x005c09', '0044-03-15 BC', '0001-01-01 00:00:00.5 BC', '10000-01-01 00:00:00.000001+00', '00112233-4455-6677-8899-aabbccddeeff', -0.10, 'x', '{"a": "\n"}', 'sad'),
 ('', -0.0001, 'infinity', NULL, '-0', '-0', false, '', 'infinity', '-infinity', 'infinity', NULL, 'NaN', NULL, NULL, NULL),
 ('Z', 0, '2024-01-01', '{}', 'NaN', '-Infinity', NULL, NULL, '5874897-12-31', '294246-01-01', '-infinity', NULL, 1e50, '', 'null', NULL),
 ('z', 0, '2024-01-01', '{}', 16777216, 9007199254740993, NULL, NULL, '1970-01-01', '1970-01-01', '0001-12-31 23:59:59+00 BC', NULL, NULL, NULL, NULL, NULL);

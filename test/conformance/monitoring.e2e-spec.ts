import { Exposition } from '../helpers/exposition';
import { dnsTask, onPostgres, TestServer } from '../helpers/harness';
import { expressions, recordings } from '../helpers/monitoring';
import { promqlParts } from '../helpers/promql';

/** Series that only one kind of database has. */
const OF_SQLITE = ['control_plane_disk_free_bytes', 'control_plane_disk_watermark_bytes'];
const OF_POSTGRES = ['control_plane_database_connections', 'control_plane_database_connections_waiting'];
const ABSENT = onPostgres ? OF_SQLITE : OF_POSTGRES;
/** What Prometheus makes itself. */
const OF_PROMETHEUS = ['up', 'ALERTS'];

describe('what the alerts, the rules and the dashboard ask for', () => {
  let exposition: Exposition;

  beforeAll(async () => {
    const server = await TestServer.start();
    try {
      const agent = await server.register('probe-1');
      await server.enqueue(dnsTask(), dnsTask());
      const limited = await server.operator('PUT', '/v1/concurrency/limits', {
        limits: [{ limit: 5 }, { kind: 'dns', limit: 4 }],
      });
      const published = await server.operator('POST', '/v1/configs', {
        config: { a: 1 },
        expires_in: 86_400,
      });
      expect([limited.status, published.status]).toEqual([200, 201]);
      await server.agent(agent, '/heartbeat');
      const { body } = await server.agent(agent, '/claim', { capacities: { dns: 2 } });
      expect(body.leases).toHaveLength(2);
      const [{ lease_id }] = body.leases;
      await server.agent(agent, '/report', { completed: [{ lease_id, outcome: 'success' }], cancelled: [] });
      await server.agent({ ...agent, auth_token: 'dcpa_wrong' }, '/claim', { capacities: {} });
      exposition = new Exposition((await server.operator('GET', '/metrics')).body);
    } finally {
      await server.stop();
    }
  });

  /** The series that a name stands for: those of a histogram have three endings. */
  const seriesOf = (name: string): string => {
    const histogram = name.replace(/_(?:bucket|sum|count)$/, '');
    return exposition.types.get(histogram) === 'histogram' ? histogram : name;
  };
  const isShown = (name: string) => exposition.types.has(seriesOf(name));
  const isRecorded = (name: string) => recordings.some(({ record }) => record === name);

  it('is shown by a server', () => {
    const missing = new Set<string>();
    for (const { of, expr } of expressions)
      for (const { name } of promqlParts(expr).selectors)
        if (!isShown(name) && !isRecorded(name) && !OF_PROMETHEUS.includes(name))
          missing.add(`${name} (${of})`);
    expect([...missing].filter((each) => !ABSENT.includes(each.split(' ')[0] as string))).toEqual([]);
  });

  it('is of the other database if it is not there', () => {
    expect(ABSENT.filter(isShown)).toEqual([]);
  });

  it('has the labels that it is asked by', () => {
    const labelsOf = (name: string): string[] | undefined => {
      if (isRecorded(name)) return (name.split(':')[0] as string).split('_');
      const lines = exposition.lines.filter((line) => line.name === name);
      return lines.length > 0 ? lines.flatMap(({ labels }) => Object.keys(labels)) : undefined;
    };
    const wrong: string[] = [];
    for (const { of, expr } of expressions) {
      const { selectors, grouping } = promqlParts(expr);
      const known = new Set(['job', 'instance', ...(expr.includes('label_replace') ? ['endpoint'] : [])]);
      let isComplete = true;
      for (const { name, labels } of selectors) {
        const found = labelsOf(name);
        if (!found) isComplete = false;
        for (const label of found ?? []) known.add(label);
        for (const label of labels)
          if (found && ![...found, 'job', 'instance'].includes(label)) wrong.push(`${of}: ${name}{${label}}`);
      }
      if (isComplete) for (const label of grouping) if (!known.has(label)) wrong.push(`${of}: by (${label})`);
    }
    expect(wrong).toEqual([]);
  });
});

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';
import type { Json } from '../helpers/api';
import { alerts, dashboard, expressions, recordings, ruleTests } from '../helpers/monitoring';
import { promqlParts } from '../helpers/promql';

// What is in deploy/prometheus and deploy/grafana, as far as it can be read. Whether the series exist: test/conformance/monitoring;
// Prometheus itself: test/slow/prometheus.

const text = (file: string) => readFileSync(join(__dirname, '../..', file), 'utf8');
const yaml = (file: string) => parse(text(file));

describe('what PromQL is made of', () => {
  it('is found by its grammar', () => {
    expect(
      promqlParts(
        'sum by (a) (rate(x_total{b="sum by (c)", d!~"e"}[5m])) > on (a) group_left (f) up unless absent(y:z)',
      ),
    ).toEqual({
      selectors: [
        { name: 'x_total', labels: ['b', 'd'] },
        { name: 'up', labels: [] },
        { name: 'y:z', labels: [] },
      ],
      grouping: ['a', 'a', 'f'],
    });
  });

  it.each(['sum(', 'rate(x[5])) ', 'x{a=b}'])('is refused if it is none: %s', (expression) => {
    expect(() => promqlParts(expression)).toThrow('not PromQL');
  });
});

describe('the alerts', () => {
  const runbooks = text('docs/control-plane-alerts.md');

  it('are there, each once', () => {
    const names = alerts.map(({ alert }) => alert);
    expect(names.length).toBeGreaterThan(20);
    expect(new Set(names).size).toBe(names.length);
  });

  it.each(alerts)(
    '$alert says how bad it is, what it is, and leads to its runbook',
    ({ alert, labels, annotations }) => {
      expect(alert).toMatch(/^ControlPlane[A-Z]\w+$/);
      expect([['page'], ['ticket']]).toContainEqual(Object.values(labels));
      expect(Object.keys(labels)).toEqual(['severity']);
      expect(Object.keys(annotations)).toEqual(['summary', 'description', 'runbook_url']);
      expect(annotations.runbook_url).toBe(`docs/control-plane-alerts.md#${alert.toLowerCase()}`);
      const headings = runbooks.split('\n').filter((line) => line === `## ${alert}`);
      expect(headings).toHaveLength(1);
    },
  );

  it('have runbooks, each with what to look at first and what to do; none is left of an alert that is gone', () => {
    const sections = runbooks.split(/^## /m).slice(1);
    const names = sections.map((section) => section.split('\n', 1)[0]);
    expect(names.filter((name) => name?.startsWith('ControlPlane')).sort()).toEqual(
      alerts.map(({ alert }) => alert).sort(),
    );
    for (const section of sections.filter((each) => each.startsWith('ControlPlane')))
      for (const part of ['**Means**', '**First look**', '**Causes**', '**Do**'])
        expect([section.split('\n', 1)[0], section.includes(part)]).toEqual([
          section.split('\n', 1)[0],
          true,
        ]);
  });

  it.each(alerts)(
    '$alert is tested to fire, with the labels that its texts name, and not to fire',
    ({ alert, annotations }) => {
      const checks = ruleTests
        .flatMap(({ promql_expr_test }) => promql_expr_test)
        .filter(({ expr }) => expr === `ALERTS{alertname="${alert}", alertstate="firing"}`);
      const [firing, quiet] = [true, false].map((fires) =>
        checks.filter(({ exp_samples }) => exp_samples.length > 0 === fires),
      ) as [Json[], Json[]];
      expect(firing.length).toBeGreaterThan(0);
      expect(quiet.length).toBeGreaterThan(0);
      const named = [
        ...Object.values(annotations)
          .join()
          .matchAll(/\$labels\.(\w+)/g),
      ].map(([, label]) => label);
      for (const { exp_samples } of firing)
        for (const label of named) expect(exp_samples[0].labels).toContain(` ${label}="`);
    },
  );
});

describe('the expressions', () => {
  it.each(expressions)('$of is PromQL', ({ expr }) => {
    expect(promqlParts(expr).selectors.length).toBeGreaterThan(0);
  });

  it('take once what every replica shows alike, and add up what each counts', () => {
    // As the documents have it: the database's are gauges of these names.
    const shared =
      /^control_plane_(tasks|tasks_stopped|oldest_queued_task_age_seconds|window_\w+|target_windows|agents|agents_\w+|config_\w+|agent_samples|agent_values)$/;
    for (const { of, expr } of expressions)
      for (const { name } of promqlParts(expr).selectors) {
        if (!shared.test(name)) continue;
        const by = '(?: (?:by|without) \\([^)]*\\))?';
        const inside = '\\((?:last_over_time\\(\\(|increase\\()?';
        const once = new RegExp(`(?:max|min|absent)${by} ?${inside}${name}\\b`);
        expect([of, name, once.test(expr)]).toEqual([of, name, true]);
      }
  });

  it('of recording rules are used, under the names that there are', () => {
    const names = recordings.map(({ record }) => record);
    const used = expressions.flatMap(({ expr }) => promqlParts(expr).selectors.map(({ name }) => name));
    for (const name of used.filter((each) => each.includes(':'))) expect(names).toContain(name);
    for (const name of names) expect(used).toContain(name);
  });

  it('of service levels ask for a bound that the buckets have and the contract says', () => {
    const [slow] = recordings.filter(({ record }) => record.includes('requests_slow'));
    const bounds = [
      ...(slow?.expr ?? '').matchAll(/route=~"\(\/v1\/agents\)\?\/\(?([\w|]+)\)?", le="([\d.]+)"/g),
    ];
    const levels = Object.fromEntries(
      bounds.flatMap(([, routes, le]) => (routes as string).split('|').map((route) => [route, Number(le)])),
    );
    expect(levels).toEqual({
      register: 0.5,
      report: 0.5,
      heartbeat: 0.3,
      claim: 0.4,
      extend: 0.35,
      metrics: 0.6,
      config: 0.6,
    });
  });
});

describe('the dashboard', () => {
  const panels: Json[] = dashboard.panels.filter(({ type }: Json) => type !== 'row');

  it('has the rows that the documents name', () => {
    const rows = dashboard.panels.filter(({ type }: Json) => type === 'row').map(({ title }: Json) => title);
    expect(rows).toEqual(['Fleet', 'Queue', 'Leases', 'Windows', 'Server', 'Jobs', "Agents' numbers"]);
  });

  it('can be provisioned: an id of its own, the data source by a variable', () => {
    expect(dashboard.uid).toBe('control-plane');
    expect(dashboard.id).toBeUndefined();
    expect(dashboard.templating.list[0]).toMatchObject({ name: 'datasource', type: 'datasource' });
    for (const { datasource, targets } of panels)
      for (const each of [datasource, ...targets.map((target: Json) => target.datasource)])
        expect(each).toEqual({ type: 'prometheus', uid: '$datasource' });
  });

  it('explains each panel and gives it a unit; none lies on another', () => {
    const places = new Set<string>();
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    expect(new Set(panels.map(({ title }) => title)).size).toBe(panels.length);
    for (const { title, description, fieldConfig, gridPos } of panels) {
      expect([title, description]).toEqual([title, expect.stringMatching(/\w.*\.$/)]);
      expect(fieldConfig.defaults.unit).toEqual(expect.any(String));
      expect(gridPos.x + gridPos.w).toBeLessThanOrEqual(24);
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++)
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          expect(places).not.toContain(`${x}/${y}`);
          places.add(`${x}/${y}`);
        }
    }
  });
});

describe('what starts them', () => {
  const { services, secrets, volumes, networks } = parse(text('deploy/compose.yaml'), { merge: true });
  const prometheus = yaml('deploy/prometheus/prometheus.yml');
  const { 'control-plane-1': replica, prometheus: server, grafana } = services;

  it('comes only with its profile, is seen on this machine only, and says how it is', () => {
    for (const { profiles, ports, healthcheck, cap_drop, security_opt } of [server, grafana]) {
      expect(profiles).toEqual(['monitoring']);
      for (const port of ports) expect(port).toMatch(/^127\.0\.0\.1:/);
      expect(healthcheck.test[0]).toBe('CMD');
      expect([cap_drop, security_opt]).toEqual([['ALL'], ['no-new-privileges:true']]);
    }
  });

  it('keeps its secrets in files, and nobody gets in without one', () => {
    const [scrape] = prometheus.scrape_configs;
    expect(scrape.authorization).toEqual({ credentials_file: `/run/secrets/${server.secrets[0]}` });
    expect(grafana.environment.GF_SECURITY_ADMIN_PASSWORD__FILE).toBe(`/run/secrets/${grafana.secrets[0]}`);
    expect(grafana.environment).toMatchObject({
      GF_AUTH_ANONYMOUS_ENABLED: 'false',
      GF_USERS_ALLOW_SIGN_UP: 'false',
    });
    for (const name of [...server.secrets, ...grafana.secrets]) {
      expect(secrets[name]).toEqual({ file: `./${name}` });
      expect(text('.gitignore').split('\n')).toContain(`/deploy/${name}`);
    }
  });

  it('scrapes each replica by itself, from outside the network whose addresses they believe', () => {
    const [{ job_name, static_configs }] = prometheus.scrape_configs;
    expect(job_name).toBe('control-plane');
    expect(static_configs).toEqual([{ targets: ['control-plane-1:8080', 'control-plane-2:8080'] }]);
    for (const each of [server, grafana]) expect(each.networks).toEqual(['monitoring']);
    expect(replica.networks).toEqual(['default', 'monitoring']);
    expect(Object.keys(networks)).toEqual(['default', 'monitoring']);
  });

  it('finds its files, and keeps what it stores', () => {
    expect(server.command).toContain('--config.file=/etc/prometheus/prometheus.yml');
    expect(server.volumes[0]).toBe('./prometheus:/etc/prometheus:ro');
    for (const file of prometheus.rule_files)
      expect(yaml(`deploy/prometheus/${file}`).groups).not.toHaveLength(0);
    const mounts = [...server.volumes, ...grafana.volumes].map((each: string) => each.split(':'));
    for (const [source] of mounts)
      if (!source?.startsWith('./')) expect(Object.keys(volumes)).toContain(source);
    const [path] = yaml('deploy/grafana/provisioning/dashboards/control-plane.yml').providers.map(
      ({ options }: Json) => options.path,
    );
    const [, mounted] = mounts.find(([source]) => source === './grafana/dashboard.json') as string[];
    expect(mounted?.startsWith(`${path}/`)).toBe(true);
    const [datasource] = yaml('deploy/grafana/provisioning/datasources/prometheus.yml').datasources;
    expect(new URL(datasource.url)).toMatchObject({ hostname: 'prometheus', port: '9090' });
    expect(datasource.jsonData.timeInterval).toBe(prometheus.global.scrape_interval);
  });
});

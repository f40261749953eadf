// Writes deploy/grafana/dashboard.json; with --check, fails if the committed one differs.
import { readFileSync, writeFileSync } from 'node:fs';

const FILE = 'deploy/grafana/dashboard.json';

const RED = 'red';
const YELLOW = 'yellow';
const GREEN = 'green';

/** Adds the prefix to a series name. */
const cp = (name) => `control_plane_${name}`;
/** A value that is the same on each replica, once. */
const once = (name, ...by) =>
  by.length > 0 ? `max by (${by.join(', ')}) (${cp(name)})` : `max(${cp(name)})`;
/** Events per second of all replicas together. */
const rate = (name, ...by) =>
  `sum by (${by.join(', ')}) (rate(${cp(name)}[$__rate_interval]))`.replace(' by () ', '');
const quantile = (q, name, ...by) =>
  `histogram_quantile(${q}, sum by (${['le', ...by].join(', ')}) (rate(${cp(`${name}_bucket`)}[$__rate_interval])))`;
const IN_SERVICE = 'fleet:control_plane_agents_in_service:max';
const KIND = '{kind=~"$kind"}';

/** Thresholds: each colour from its value up. */
const steps = (...from) => [
  { color: GREEN, value: null },
  ...from.map(([color, value]) => ({ color, value })),
];

/**
 * Builds one panel. `queries` are `[expression, legend]`.
 * @param options.from the values from which it is yellow or red
 */
function panel(type, title, description, unit, queries, options = {}) {
  const { from = [], min = 0, max, width = type === 'stat' ? 4 : 8, stacked = false } = options;
  const graph = type === 'timeseries';
  return {
    type,
    title,
    description,
    width,
    height: type === 'stat' ? 4 : 8,
    datasource: { type: 'prometheus', uid: '$datasource' },
    targets: queries.map(([expr, legendFormat = '__auto'], i) => ({
      refId: String.fromCharCode(65 + i),
      datasource: { type: 'prometheus', uid: '$datasource' },
      expr,
      legendFormat,
      ...(graph ? {} : { instant: true, range: false }),
    })),
    fieldConfig: {
      defaults: {
        unit,
        min,
        ...(max === undefined ? {} : { max }),
        thresholds: { mode: 'absolute', steps: steps(...from) },
        color: { mode: graph ? 'palette-classic' : 'thresholds' },
        custom: graph
          ? {
              fillOpacity: stacked ? 30 : 5,
              showPoints: 'never',
              stacking: { mode: stacked ? 'normal' : 'none', group: 'A' },
              thresholdsStyle: { mode: from.length > 0 ? 'line' : 'off' },
            }
          : {},
      },
      overrides: [],
    },
    options: graph
      ? {
          legend: { displayMode: 'list', placement: 'bottom', showLegend: true },
          tooltip: { mode: 'multi', sort: 'desc' },
        }
      : { reduceOptions: { calcs: ['lastNotNull'] }, colorMode: 'value', graphMode: 'none' },
  };
}

const stat = (...args) => panel('stat', ...args);
const graph = (...args) => panel('timeseries', ...args);

const ROWS = {
  Fleet: [
    stat('Agents in service', 'Active or draining, silent or not.', 'short', [[IN_SERVICE]]),
    stat(
      'Silent',
      'In service, with the last heartbeat older than twice the timeout, as a share of the fleet.',
      'percentunit',
      [[`${once('agents_silent')} / ${IN_SERVICE}`]],
      {
        from: [
          [YELLOW, 0.05],
          [RED, 0.25],
        ],
      },
    ),
    stat(
      'Failing',
      'Agents whose attempts of the last hour mostly failed. To list them: control-plane agents list --failing.',
      'short',
      [[once('agents_failing')]],
      { from: [[YELLOW, 1]] },
    ),
    stat(
      'Configuration expires in',
      'An expired configuration is not served. Empty if none is in force.',
      's',
      [[`(${once('config_expires_timestamp_seconds')} > 0) - time()`]],
      { min: null },
    ),
    stat('Replicas', 'Replicas that answer scrapes.', 'short', [['sum(up{job="control-plane"})']]),
    stat(
      'Versions',
      'More than one: an upgrade is not finished.',
      'short',
      [['count(count by (version) (control_plane_build_info))']],
      { from: [[YELLOW, 2]] },
    ),
    graph(
      'Agents by status',
      'The same on each replica.',
      'short',
      [[once('agents', 'status'), '{{status}}']],
      {
        stacked: true,
      },
    ),
    graph(
      'Age of the last heartbeats',
      'Of agents in service, now: 25, 50 and 95 percent are younger. An agent sends one every 15 s.',
      's',
      [0.25, 0.5, 0.95].map((q) => [
        `histogram_quantile(${q}, max by (le) (${cp('agent_heartbeat_age_seconds_bucket')}))`,
        `p${q * 100}`,
      ]),
      { from: [[RED, 90]] },
    ),
    graph(
      'Roll-out of the configuration',
      'What agents in service reported about the revision in force.',
      'short',
      [[once('config_agents', 'state'), '{{state}}']],
      { stacked: true },
    ),
  ],
  Queue: [
    graph(
      'Tasks that wait or run',
      'Depth of the queue.',
      'short',
      [
        [
          `max by (kind, state) (${cp('tasks')}{kind=~"$kind", state=~"scheduled|queued|leased"})`,
          '{{kind}} {{state}}',
        ],
      ],
      { stacked: true },
    ),
    graph(
      'Age of the oldest queued task',
      'Since it was enqueued. A scheduled task is already old when it becomes due: compare with the next panel.',
      's',
      [[`max by (kind) (${cp('oldest_queued_task_age_seconds')}${KIND})`, '{{kind}}']],
      { from: [[RED, 1_800]] },
    ),
    graph(
      'How long tasks wait for an agent',
      'From when they could run until they are claimed; 95 percent wait at most this long.',
      's',
      [[quantile(0.95, 'task_wait_seconds', 'kind').replace('_bucket', `_bucket${KIND}`), '{{kind}}']],
      { from: [[RED, 300]] },
    ),
    graph('Enqueued', 'Tasks per second.', 'ops', [
      [rate(`tasks_enqueued_total${KIND}`, 'kind'), '{{kind}}'],
    ]),
    graph(
      'Ended without a result',
      'Tasks per hour, by reason. To list them: control-plane task list --state dead.',
      'short',
      [[`sum by (kind, reason) (increase(${cp('tasks_dead_total')}${KIND}[1h]))`, '{{kind}} {{reason}}']],
    ),
    graph(
      'Tasks in the database',
      'Finished tasks are kept for TASK_RETENTION_DAYS.',
      'short',
      [[`sum by (state) (max by (kind, state) (${cp('tasks')}{kind=~"$kind"}))`, '{{state}}']],
      { stacked: true },
    ),
  ],
  Leases: [
    graph('Granted and ended', 'Leases per second.', 'ops', [
      [rate(`leases_granted_total${KIND}`), 'granted'],
      [rate(`leases_completed_total${KIND}`), 'completed'],
      [rate(`leases_cancelled_total${KIND}`), 'cancelled'],
      [rate(`leases_expired_total${KIND}`), 'expired'],
      [rate('leases_revoked_total'), 'revoked'],
      [rate('leases_extended_total'), 'extended'],
    ]),
    graph(
      'Outcomes',
      'Outcomes of checks per second. A timeout is a result, not a failure of the agent.',
      'ops',
      [[rate(`leases_completed_total${KIND}`, 'outcome'), '{{outcome}}']],
      { stacked: true },
    ),
    graph(
      'Share that expires',
      'Of the leases that ended in 30 minutes: their work is done twice.',
      'percentunit',
      [
        [
          `sum by (kind) (increase(${cp('leases_expired_total')}${KIND}[30m])) / on (kind) (kind:control_plane_leases_ended:increase30m > 0)`,
          '{{kind}}',
        ],
      ],
      { from: [[RED, 0.05]], max: 1 },
    ),
    graph(
      'How long leases are held',
      'From the claim to the report; 50 and 95 percent take at most this long.',
      's',
      [0.5, 0.95].map((q) => [
        quantile(q, 'lease_held_seconds', 'kind').replace('_bucket', `_bucket${KIND}`),
        `{{kind}} p${q * 100}`,
      ]),
    ),
    graph('Rejected reports', 'Per second, by reason: these results had no effect.', 'ops', [
      [rate('reports_rejected_total', 'reason'), '{{reason}}'],
    ]),
    graph(
      'Claims that wait',
      'Open long polls. If they are few while tasks are queued, agents are busy or limits are reached.',
      'short',
      [[`sum by (instance) (${cp('long_polls')})`, '{{instance}}']],
    ),
  ],
  Windows: [
    graph('All tasks: leased and limit', 'Without a limit there is no line.', 'short', [
      [`max(${cp('window_leased')}{scope="global"})`, 'leased'],
      [`max(${cp('window_limit')}{scope="global"})`, 'limit'],
    ]),
    graph('Room left', 'How many more tasks may be leased, for windows with a limit.', 'short', [
      [once('window_available', 'scope', 'kind'), '{{scope}} {{kind}}'],
    ]),
    graph(
      "Targets' windows with a limit",
      'With room, full, and limited to one task at once or none.',
      'short',
      [[once('target_windows', 'state'), '{{state}}']],
      { stacked: true },
    ),
    graph('Queued for stopped targets', 'Tasks whose target has a limit of 0.', 'short', [
      [`max by (kind) (${cp('tasks_stopped')}{kind=~"$kind"})`, '{{kind}}'],
    ]),
  ],
  Server: [
    graph(
      'Requests',
      "Agents' requests per second, by endpoint.",
      'reqps',
      [['endpoint:control_plane_http_requests:rate5m', '{{endpoint}}']],
      { stacked: true },
    ),
    graph(
      'Slower than the service level',
      'Share of requests above the bound: register and report 500 ms, heartbeat 300, claim 400, extend 350, metrics and config 600. From 5 % the P95 is above it.',
      'percentunit',
      [
        [
          'endpoint:control_plane_http_requests_slow:rate5m / endpoint:control_plane_http_requests_worked_on:rate5m',
          '{{endpoint}}',
        ],
      ],
      { from: [[RED, 0.05]], max: 1 },
    ),
    graph(
      'Answered 5xx',
      'Share of the requests. The budget is 0.1 %.',
      'percentunit',
      [
        [
          'endpoint:control_plane_http_requests_failed:rate5m / endpoint:control_plane_http_requests:rate5m',
          '{{endpoint}}',
        ],
      ],
      { from: [[RED, 0.001]] },
    ),
    graph(
      'P95 by route',
      "All routes, including operators', without the time that a claim waited for work.",
      's',
      [[quantile(0.95, 'http_request_duration_seconds', 'method', 'route'), '{{method}} {{route}}']],
    ),
    graph(
      'Refusals',
      'Per second, by reason. For the agents, see "requests summed up" in the log.',
      'reqps',
      [[rate('requests_refused_total', 'reason'), '{{reason}}']],
    ),
    graph('Over a quota', 'Per second, by quota.', 'reqps', [
      [rate('quota_refusals_total', 'quota'), '{{quota}}'],
    ]),
    graph(
      'Load',
      'As a share of the limit: at 1 claims and enqueues are refused, at 2 everything is.',
      'percentunit',
      [[`max by (instance) (${cp('overload_ratio')})`, '{{instance}}']],
      { from: [[RED, 1]] },
    ),
    graph('Event loop delay', 'Mean delay of the last half second.', 's', [
      [`max by (instance) (${cp('event_loop_delay_seconds')})`, '{{instance}}'],
      ['max by (instance) (nodejs_eventloop_lag_p99_seconds{job="control-plane"})', '{{instance}} p99'],
    ]),
    graph(
      'Commits',
      'How long they take to be on the disk; 50 and 95 percent take at most this long.',
      's',
      [0.5, 0.95].map((q) => [
        quantile(q, 'commit_duration_seconds', 'instance'),
        `{{instance}} p${q * 100}`,
      ]),
      { from: [[RED, 0.1]] },
    ),
    graph('Units of work in a commit', 'Average: writes that wait together share one.', 'short', [
      [`${rate('commit_units_sum', 'instance')} / ${rate('commit_units_count', 'instance')}`, '{{instance}}'],
    ]),
    graph(
      'Write queue and pool',
      'Units of work that wait to be written; on PostgreSQL, for a connection.',
      'short',
      [
        [`max by (instance) (${cp('write_queue_depth')})`, '{{instance}} waiting'],
        [`max by (instance) (${cp('database_connections')}{state="busy"})`, '{{instance}} busy connections'],
        [
          `max by (instance) (${cp('database_connections_waiting')})`,
          '{{instance}} waiting for a connection',
        ],
        [
          `sum by (instance) (increase(${cp('commit_failures_total')}[$__rate_interval]))`,
          '{{instance}} failed commits',
        ],
      ],
    ),
    graph('Database and disk', 'On PostgreSQL only the size of the database is known.', 'bytes', [
      [once('database_size_bytes'), 'database'],
      [`min by (instance) (${cp('disk_free_bytes')})`, '{{instance}} free'],
      [once('disk_watermark_bytes'), 'watermark'],
    ]),
    graph('Connections', 'Open connections, and those refused in 5 minutes, by reason.', 'short', [
      [`max by (instance) (${cp('connections')})`, '{{instance}}'],
      [`sum by (reason) (increase(${cp('connections_refused_total')}[5m]))`, 'refused: {{reason}}'],
    ]),
    graph('Memory', 'Of the process; the deploy files limit it to 2 GiB.', 'bytes', [
      ['max by (instance) (process_resident_memory_bytes{job="control-plane"})', '{{instance}}'],
    ]),
    graph(
      'Processor',
      'Cores. Requests are handled on one.',
      'short',
      [
        [
          'sum by (instance) (rate(process_cpu_seconds_total{job="control-plane"}[$__rate_interval]))',
          '{{instance}}',
        ],
      ],
      { from: [[RED, 1]] },
    ),
    graph('Requests in flight', 'Requests that are being handled, without claims that wait.', 'short', [
      [`max by (instance) (${cp('requests_in_flight')})`, '{{instance}}'],
    ]),
    graph(
      'Bytes of answers that are being sent',
      'Beyond MAX_ANSWER_BYTES connections are closed.',
      'bytes',
      [[`max by (instance) (${cp('answers_sending_bytes')})`, '{{instance}}']],
    ),
    graph(
      'Lost',
      'Dropped log lines, and values counted as "other", per hour; replicas that drain.',
      'short',
      [
        [`sum by (instance) (increase(${cp('log_lines_dropped_total')}[1h]))`, '{{instance}} log lines'],
        [
          `sum by (instance) (increase(${cp('metrics_series_folded_total')}[1h]))`,
          '{{instance}} folded values',
        ],
        [`max by (instance) (${cp('draining')})`, '{{instance}} drains'],
      ],
    ),
  ],
  Jobs: [
    graph(
      'Runs',
      'Per hour, by result. A run is skipped if the previous one, or one of another replica, has not ended.',
      'short',
      [[`sum by (job_name, result) (increase(${cp('job_runs_total')}[1h]))`, '{{job_name}} {{result}}']],
    ),
    graph(
      'Lag',
      'How late runs start. Expired leases are returned within 1 s if the reaper is on time.',
      's',
      [[once('job_lag_seconds', 'job_name'), '{{job_name}}']],
    ),
    graph('Duration', 'The mean of the runs.', 's', [
      [
        `${rate('job_duration_seconds_sum', 'job_name')} / ${rate('job_duration_seconds_count', 'job_name')}`,
        '{{job_name}}',
      ],
    ]),
    graph('Since the last success', 'On any replica.', 's', [
      [`time() - ${once('job_last_success_timestamp_seconds', 'job_name')}`, '{{job_name}}'],
    ]),
  ],
  "Agents' numbers": [
    graph(
      "Agents' counters",
      'As agents report them, summed over agents that are not silent: it falls when one becomes silent.',
      'short',
      [[`sum by (name) (max without (instance) (${cp('agent_samples')}))`, '{{name}}']],
    ),
    graph(
      "Agents' gauges",
      'Minimum, mean and maximum of agents that are not silent; for each set of labels if METRICS_LABELS names some.',
      'short',
      [[`max without (instance) (${cp('agent_values')})`, '{{name}} {{stat}}']],
      { min: null },
    ),
    stat(
      'Values left out',
      'Per hour, because agents use more names than are shown.',
      'short',
      [[`max(increase(${cp('agent_samples_dropped_total')}[1h]))`]],
      { from: [[YELLOW, 1]] },
    ),
  ],
};

/** Places rows one below the other, and their panels from left to right. */
function layOut(rows) {
  const panels = [];
  let y = 0;
  for (const [title, members] of Object.entries(rows)) {
    panels.push({ type: 'row', title, collapsed: false, panels: [], gridPos: { x: 0, y, w: 24, h: 1 } });
    y += 1;
    let x = 0;
    let tallest = 0;
    for (const { width, height, ...rest } of members) {
      if (x + width > 24) {
        y += tallest;
        x = 0;
        tallest = 0;
      }
      panels.push({ ...rest, gridPos: { x, y, w: width, h: height } });
      x += width;
      tallest = Math.max(tallest, height);
    }
    y += tallest;
  }
  return panels.map((each, i) => ({ id: i + 1, ...each }));
}

const dashboard = {
  uid: 'control-plane',
  title: 'Control plane',
  description:
    'Generated by scripts/dashboard.mjs (npm run dashboard). The alerts are described in docs/control-plane-alerts.md.',
  tags: ['control-plane'],
  schemaVersion: 39,
  version: 1,
  editable: true,
  graphTooltip: 1,
  refresh: '30s',
  time: { from: 'now-6h', to: 'now' },
  timezone: 'utc',
  templating: {
    list: [
      {
        name: 'datasource',
        label: 'Data source',
        type: 'datasource',
        query: 'prometheus',
        current: {},
        hide: 0,
      },
      {
        name: 'kind',
        label: 'Kind',
        type: 'query',
        datasource: { type: 'prometheus', uid: '$datasource' },
        definition: 'label_values(control_plane_tasks_enqueued_total, kind)',
        query: { query: 'label_values(control_plane_tasks_enqueued_total, kind)', refId: 'kind' },
        refresh: 2,
        sort: 1,
        includeAll: true,
        allValue: '.*',
        multi: true,
        current: { text: ['All'], value: ['$__all'] },
      },
    ],
  },
  annotations: {
    list: [
      {
        name: 'Alerts',
        enable: true,
        iconColor: RED,
        datasource: { type: 'prometheus', uid: '$datasource' },
        expr: 'ALERTS{alertname=~"ControlPlane.*", alertstate="firing"}',
        titleFormat: '{{alertname}}',
        textFormat: '{{severity}}',
        step: '60s',
      },
    ],
  },
  panels: layOut(ROWS),
};

const text = `${JSON.stringify(dashboard, null, 2)}\n`;
if (!process.argv.includes('--check')) {
  writeFileSync(FILE, text);
} else if (readFileSync(FILE, 'utf8') !== text) {
  console.error(`${FILE} is not what scripts/dashboard.mjs makes: run "npm run dashboard" and commit it.`);
  process.exitCode = 1;
}

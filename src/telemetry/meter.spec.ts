import { Meter } from './meter';

describe('Meter', () => {
  const ignore = () => undefined;

  it.each([
    ['counter', { name: 'things', help: 'Things.' }, 'must end in _total'],
    ['gauge', { name: 'things_total', help: 'Things.' }, 'that Prometheus reserves'],
    ['gauge', { name: 'things_count', help: 'Things.' }, 'that Prometheus reserves'],
    ['gauge', { name: 'control_plane_things', help: 'Things.' }, 'must not repeat'],
    ['gauge', { name: 'Things-here', help: 'Things.' }, 'lower case words'],
    ['gauge', { name: 'things', help: ' ' }, 'needs a help text'],
    ['gauge', { name: 'things', help: 'Things,\nlines' }, 'of one line'],
    ['counter', { name: 'things_total', help: 'Things.', labels: ['agent_id'] }, 'no bound: agent_id'],
    ['counter', { name: 'things_total', help: 'Things.', labels: ['target'] }, 'no bound: target'],
    ['counter', { name: 'things_total', help: 'Things.', labels: ['job'] }, 'no bound: job'],
    ['counter', { name: 'things_total', help: 'Things.', labels: ['a', 'a'] }, 'a label twice'],
    [
      'counter',
      { name: 'things_total', help: 'Things.', labels: ['a', 'b', 'c', 'd', 'e'] },
      'more than four',
    ],
    ['counter', { name: 'things_total', help: 'Things.', labels: ['Bad'] }, 'lower case words'],
  ] as const)('refuses a %s %j', (sort, options, problem) => {
    expect(() =>
      new Meter()[sort]({ ...options, labels: [...('labels' in options ? options.labels : [])] }),
    ).toThrow(problem);
  });

  it('refuses a name that is taken, by whatever sort of instrument', () => {
    const meter = new Meter();
    meter.gauge({ name: 'things', help: 'Things.' });
    expect(() => meter.gauge({ name: 'things', help: 'Others.' })).toThrow('exists already');
    expect(() => meter.snapshot({ name: 'things', help: 'Others.', buckets: [1] })).toThrow('exists already');
  });

  it('counts as "other" what is beyond its number of label sets, and says that it does', async () => {
    const meter = new Meter();
    const things = meter.counter({ name: 'things_total', help: 'Things.', labels: ['sort'], maxSeries: 2 });
    for (const sort of ['a', 'b', 'c', 'd', 'a']) things.add({ sort });
    const text = await meter.collect(ignore);
    expect(text.match(/^control_plane_things_total.*$/gm)).toEqual([
      'control_plane_things_total{sort="a"} 2',
      'control_plane_things_total{sort="b"} 1',
      'control_plane_things_total{sort="other"} 2',
    ]);
    expect(text).toContain('control_plane_metrics_series_folded_total 2');
  });

  it('reads at each scrape what others keep; one reader that fails keeps no others back', async () => {
    const meter = new Meter();
    let count = 3;
    meter.readCounter({ name: 'others_total', help: 'Others.' }, () => count);
    meter.readGauge({ name: 'absent', help: 'Absent.' }, () => undefined);
    const failures: unknown[] = [];
    meter.onScrape(() => Promise.reject(new Error('away')));
    meter.readGauge({ name: 'behind', help: 'Behind it.' }, () => 1);
    expect(await meter.collect((error) => failures.push(error))).toContain('control_plane_others_total 3\n');
    count = 5;
    await meter.collect(ignore);
    count = 4;
    const text = await meter.collect(ignore);
    expect(text).toContain('control_plane_others_total 5\n');
    expect(text).not.toMatch(/^control_plane_absent /m);
    expect(text).toContain('control_plane_behind 1\n');
    expect(failures).toEqual([expect.objectContaining({ message: 'away' })]);
  });

  it('does not wait for a reader that takes too long, nor for those behind it', async () => {
    jest.useFakeTimers();
    try {
      const meter = new Meter();
      meter.onScrape(() => new Promise(() => undefined));
      meter.onScrape(() => new Promise(() => undefined));
      const failures: unknown[] = [];
      const text = meter.collect((error) => failures.push(error));
      await jest.advanceTimersByTimeAsync(5_000);
      expect(await text).toContain('control_plane_metrics_series_folded_total 0');
      expect(failures).toHaveLength(2);
    } finally {
      jest.useRealTimers();
    }
  });

  it('has scrapes within a second share an exposition, also while it is made', async () => {
    let now = 0;
    const meter = new Meter(() => now);
    let collected = 0;
    meter.onScrape(() => {
      collected++;
    });
    await Promise.all([meter.expose(ignore), meter.expose(ignore)]);
    now = 999;
    await meter.expose(ignore);
    expect(collected).toBe(1);
    now = 1_000;
    await meter.expose(ignore);
    expect(collected).toBe(2);
  });

  it('shows a snapshot as a histogram, its buckets summed up', async () => {
    const meter = new Meter();
    meter.snapshot({ name: 'age_seconds', help: 'Ages.', buckets: [1, 5] }).set([2, 0, 1], 9);
    expect(await meter.collect(ignore)).toContain(
      [
        '# TYPE control_plane_age_seconds histogram',
        'control_plane_age_seconds_bucket{le="1"} 2',
        'control_plane_age_seconds_bucket{le="5"} 2',
        'control_plane_age_seconds_bucket{le="+Inf"} 3',
        'control_plane_age_seconds_sum 9',
        'control_plane_age_seconds_count 3',
        '',
      ].join('\n'),
    );
  });
});

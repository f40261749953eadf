import fc from 'fast-check';
import { type ClaimPlan, planClaim, shareOut, shareTasks } from './claim-shares';

const demand = (kind: string, asked: number, available = Number.MAX_SAFE_INTEGER) => ({
  kind,
  asked,
  available,
});

describe('the kinds of a claim', () => {
  it('share what it may have in proportion to what was asked', () => {
    expect(shareOut([demand('dns', 300), demand('http', 100)], 256)).toEqual(
      new Map([
        ['dns', 192],
        ['http', 64],
      ]),
    );
  });

  it('get what another has no tasks for', () => {
    expect(shareOut([demand('dns', 200), demand('http', 200, 10)], 256)).toEqual(
      new Map([
        ['dns', 200],
        ['http', 10],
      ]),
    );
  });

  it('get as many as there is room for, and never more than was asked, exist, or are allowed', () => {
    const demands = fc.uniqueArray(
      fc.record({ kind: fc.string(), asked: fc.nat(1_000_000), available: fc.nat(300) }),
      { selector: ({ kind }) => kind, maxLength: 8 },
    );
    fc.assert(
      fc.property(demands, fc.nat(256), (all, limit) => {
        const shares = shareOut(all, limit);
        let sum = 0;
        let possible = 0;
        for (const { kind, asked, available } of all) {
          const share = shares.get(kind) as number;
          expect(share).toBeLessThanOrEqual(Math.min(asked, available));
          sum += share;
          possible += Math.min(asked, available);
        }
        expect(sum).toBe(Math.min(limit, possible));
      }),
    );
  });
});

describe('claims that share tasks', () => {
  const budgets = fc.dictionary(fc.constantFrom('dns', 'http', 'tcp'), fc.integer({ min: 1, max: 40 }), {
    noNullPrototype: true,
  });

  it('get them in proportion to what each asked, and all that there are and that they may have', () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(budgets, fc.nat(30)), { minLength: 1, maxLength: 4 }),
        fc.record({ dns: fc.nat(60), http: fc.nat(60), tcp: fc.nat(60) }),
        async (asked, available) => {
          const plans = asked.map(([wanted, limit]) =>
            planClaim(Object.entries(wanted), new Map(), 1_000, limit),
          );
          let id = 0;
          const there = new Map<string, number>(Object.entries(available));
          const { unwanted } = await shareTasks(plans, async (wanted) =>
            [...wanted].flatMap(([kind, count]) => {
              const taken = Math.min(count, there.get(kind) ?? 0);
              there.set(kind, (there.get(kind) ?? 0) - taken);
              return Array.from({ length: taken }, () => ({ id: id++, kind, priority: 0 }));
            }),
          );
          expect(unwanted).toEqual([]);
          const countOf = (
            { tasks }: ClaimPlan<{ id: number; kind: string; priority: number }>,
            kind: string,
          ) => tasks.filter((task) => task.kind === kind).length;
          for (const plan of plans) {
            expect(plan.tasks.length).toBeLessThanOrEqual(plan.limit);
            for (const [kind, budget] of plan.budgets) {
              expect(countOf(plan, kind)).toBeLessThanOrEqual(budget);
              // It got all that it may have, or there is no more of what it lacks.
              if (plan.tasks.length < plan.limit && countOf(plan, kind) < budget)
                expect(there.get(kind)).toBe(0);
            }
          }
          // Nobody else has taken from the kinds: the shares of a claim that is alone are those of one that knew what there is.
          const [alone] = plans;
          if (plans.length === 1 && alone)
            expect(new Map([...alone.budgets.keys()].map((kind) => [kind, countOf(alone, kind)]))).toEqual(
              shareOut(
                [...alone.budgets].map(([kind, budget]) =>
                  demand(kind, budget, available[kind as keyof typeof available]),
                ),
                alone.limit,
              ),
            );
        },
      ),
    ));
});

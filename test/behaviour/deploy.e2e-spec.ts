import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parse, parseAllDocuments } from 'yaml';
import { readSettings, type Settings, serverFile } from '../../src/settings';
import type { Json } from '../helpers/api';

// What can't be run here is read, by what would be wrong with it.

const text = (file: string) => readFileSync(join(__dirname, '../..', file), 'utf8');
const openapi = JSON.parse(text('docs/openapi.json'));
const { engines, scripts } = JSON.parse(text('package.json'));

/** Whether the API answers there without credentials. */
function expectPublic(path: string): void {
  expect(Object.keys(openapi.paths)).toContain(path);
  expect(openapi.paths[path].get.security ?? []).toEqual([]);
}

/** What must come from elsewhere; here by a value that would do. */
const SECRETS: Record<string, string> = {
  CONTROL_PLANE_DATABASE_URL: 'postgres://user:password@host/name',
  CONTROL_PLANE_ADMIN_TOKEN: 'a-token-of-more-than-24-characters',
  POSTGRES_PASSWORD: 'password',
  CONTROL_PLANE_IMAGE: `registry.example.com/control-plane@sha256:${'0'.repeat(64)}`,
};

const SECRETS_OF_POSTGRES = { CONTROL_PLANE_DATABASE_URL: SECRETS.CONTROL_PLANE_DATABASE_URL };

/** An image of others: named by a version. */
const VERSIONED = /^[a-z0-9./-]+:v?\d+\.\d+[\w.-]*$/;
/** An image that stays what it is. */
const BY_DIGEST = /@sha256:[0-9a-f]{64}$/;

const seconds = (duration: string): number => {
  const match = /^(\d+)(ms|s|m)?$/.exec(duration);
  if (!match) throw new Error(`${duration} is not a duration`);
  return Number(match[1]) * { ms: 0.001, s: 1, m: 60 }[(match[2] ?? 's') as 'ms' | 's' | 'm'];
};

/** Variables of compose.yaml as they are filled in: with the default, or with what must be given. */
const fill = (value: string): string =>
  value.replaceAll(/\$\{(\w+):([-?])([^}]*)\}/g, (_all, name, kind, text) =>
    kind === '-' ? text : (SECRETS[name] as string),
  );

/** The port, whether stopping fits into a time, in seconds, and that strangers can't register agents. */
function expectToFit(settings: Settings, { stopSeconds }: { stopSeconds: number }): void {
  expect([settings.port, settings.registration]).toEqual([8080, 'token']);
  // Longer than the load balancer of compose.yaml takes to notice.
  expect(settings.drainMs).toBeGreaterThan(2_000);
  expect(stopSeconds * 1_000).toBeGreaterThan(settings.shutdownTimeoutMs + 2_000);
}

/** In which folder a server leaves the file by which commands find it: on PostgreSQL it is the working directory. */
const folderOfServerFile = ({ database }: Settings, workingDirectory: string): string =>
  database.type === 'postgres' ? workingDirectory : dirname(serverFile(database));

/** The instructions of one name of the Dockerfile's last stage. */
const image = (instruction: string): string[] =>
  text('Dockerfile')
    .replaceAll(/\\\n\s*/g, '')
    .split(/^FROM /m)
    .slice(-1)
    .flatMap((stage) => [...stage.matchAll(/^([A-Z]+) (.*)$/gm)])
    .flatMap(([, name, rest]) => (name === instruction ? [rest as string] : []));

/** Lines of `key=value` under their section. */
function ini(source: string): Record<string, Record<string, string[]>> {
  const sections: Record<string, Record<string, string[]>> = {};
  let section: Record<string, string[]> | undefined;
  for (const line of source.split('\n').filter((each) => each !== '' && !each.startsWith('#'))) {
    const head = /^\[(\w+)\]$/.exec(line);
    const pair = /^(\w+)=(.*)$/.exec(line);
    if (head) {
      section = {};
      sections[head[1] as string] = section;
    } else if (pair && section) {
      section[pair[1] as string] = [...(section[pair[1] as string] ?? []), pair[2] as string];
    } else throw new Error(`not a line of a unit: ${line}`);
  }
  return sections;
}

describe('the Dockerfile', () => {
  const instructions = text('Dockerfile')
    .replaceAll(/^#.*\n/gm, '')
    .replaceAll(/\\\n\s*/g, '')
    .split('\n')
    .filter(Boolean)
    .map((line) => [line.slice(0, line.indexOf(' ')), line.slice(line.indexOf(' ') + 1)] as const);
  const stages: (readonly [string, string])[][] = [];
  for (const each of instructions)
    if (each[0] === 'FROM') stages.push([each]);
    else stages.at(-1)?.push(each);
  const last = stages.at(-1) as (readonly [string, string])[];
  const all = (name: string, of = last) => of.filter(([each]) => each === name).map(([, rest]) => rest);

  it('builds apart from what it ships, on one Node that is new enough', () => {
    expect(stages.length).toBeGreaterThanOrEqual(2);
    const images = new Set(stages.map(([from]) => from?.[1].split(' ')[0]));
    // One argument, so that who builds can give its digest.
    expect([...images]).toEqual([expect.stringMatching(/^\$\{NODE_IMAGE\}$/)]);
    const [, image = ''] = /^ARG NODE_IMAGE=(.*)$/m.exec(text('Dockerfile')) ?? [];
    expect(image).toMatch(VERSIONED);
    expect(Number(/^node:(\d+)/.exec(image)?.[1])).toBeGreaterThan(Number(/(\d+)/.exec(engines.node)?.[1]));
  });

  it('ships no development dependency and nothing of the folder it is built in', () => {
    const stageOf = (name: string) => stages.find(([from]) => from?.[1].endsWith(` AS ${name}`)) ?? [];
    for (const copy of all('COPY')) expect(copy).toMatch(/^--from=(build|dependencies) /);
    const [modules] = all('COPY').filter((copy) => copy.includes('node_modules'));
    expect(modules).toMatch(/^--from=dependencies /);
    expect(all('RUN', stageOf('dependencies'))).toEqual([expect.stringContaining('npm ci --omit=dev')]);
    expect(all('RUN', stageOf('build')).at(-1)).toBe('npm run build');
    expect(all('RUN').join()).not.toMatch(/npm|apt/);
  });

  it('runs as somebody who is not root, with a check of its health', () => {
    expect(all('USER')).toEqual([expect.stringMatching(/^[1-9]\d*:[1-9]\d*$/)]);
    const [check] = all('HEALTHCHECK');
    const path = /http:\/\/127\.0\.0\.1:8080(\/\w+)/.exec(check as string)?.[1] as string;
    expectPublic(path);
    expect(JSON.parse(all('ENTRYPOINT')[0] as string)).toEqual(['node', '/opt/control-plane/dist/main.js']);
    expect(all('CMD').at(-1)).toBe('["serve"]');
    expect(all('EXPOSE')).toEqual(['8080']);
  });

  it('sets what the program knows', () => {
    const env = Object.fromEntries(
      [
        ...all('ENV')
          .join(' ')
          .matchAll(/(\w+)=(\S+)/g),
      ].map(([, name, value]) => [name, value]),
    );
    expect(readSettings(env)).toMatchObject({
      database: { type: 'sqlite', path: '/var/lib/control-plane/control-plane.db' },
      host: '0.0.0.0',
      port: 8080,
      registration: 'token',
    });
    expect(all('VOLUME')).toEqual(all('WORKDIR'));
  });

  it('is given what the build needs, and no database, key or token', () => {
    const patterns = text('.dockerignore')
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#'));
    expect(patterns[0]).toBe('*');
    const letIn = patterns.filter((line) => line.startsWith('!')).map((line) => line.slice(1));
    for (const copy of all('COPY', stages[0] as (readonly [string, string])[]))
      for (const source of copy.split(' ').slice(0, -1))
        expect(letIn.some((each) => each === source || each.startsWith(`${source}/`))).toBe(true);
    expect(letIn).not.toContainEqual(expect.stringMatching(/\.(db|pem|env)|token|deploy|node_modules/));
    expect(scripts.build).toContain('scripts/build-example.mjs');
  });
});

describe('compose.yaml', () => {
  const compose = parse(text('deploy/compose.yaml'), { merge: true });
  const replicas = ['control-plane-1', 'control-plane-2'].map((name) => compose.services[name]);

  it('runs two replicas of the image that is named, with settings that the program takes', () => {
    for (const replica of replicas) {
      expect(replica.image).toMatch(/^\$\{CONTROL_PLANE_IMAGE:\?.*digest.*\}$/);
      const filled = Object.fromEntries(
        Object.entries<string>(replica.environment).map(([name, value]) => [name, fill(value)]),
      );
      const settings = readSettings(filled);
      expect(settings.database.type).toBe('postgres');
      expectToFit(settings, { stopSeconds: seconds(replica.stop_grace_period) });
      const [subnet] = compose.networks.default.ipam.config.map((each: Json) => each.subnet);
      expect(replica.environment.CONTROL_PLANE_TRUST_PROXY).toBe(subnet);
      expect(new URL((settings.database as { url: string }).url).hostname).toBe('postgres');
      expect(replica.depends_on.postgres.condition).toBe('service_healthy');
      const [secret] = replica.secrets;
      expect(settings.signingKeyFile).toBe(`/run/secrets/${secret}`);
      expect(compose.secrets[secret]).toEqual({ file: expect.any(String) });
      expect([replica.read_only, replica.cap_drop]).toEqual([true, ['ALL']]);
      const { soft, hard } = replica.ulimits.nofile;
      expect([soft, soft > settings.maxConnections]).toEqual([hard, true]);
      // Its root is read-only: the image's volume is what the server can write.
      expect([replica.working_dir, replica.volumes, replica.user]).toEqual([undefined, undefined, undefined]);
      expect(image('VOLUME')).toEqual([folderOfServerFile(settings, image('WORKDIR')[0] as string)]);
    }
  });

  it('names images by version, limits what each takes, and holds no secret', () => {
    for (const service of Object.values<Json>(compose.services)) {
      expect([VERSIONED, BY_DIGEST].some((form) => form.test(fill(service.image)))).toBe(true);
      // Each by a variable, so that a digest can be given.
      expect(service.image).toMatch(/^\$\{\w+_IMAGE:/);
      expect(service.deploy.resources.limits).toEqual({
        cpus: expect.any(String),
        memory: expect.any(String),
      });
      for (const [name, value] of Object.entries<string>(service.environment ?? {}))
        if (/PASSWORD|TOKEN/.test(name))
          expect(value).toMatch(name.endsWith('__FILE') ? /^\/run\/secrets\/[\w-]+$/ : /^\$\{\w+:\?\}$/);
    }
    expect(text('deploy/compose.yaml')).not.toMatch(/:\/\/\w+:(?!\$\{)[^@\s]*@/);
  });

  it('keeps what PostgreSQL writes', () => {
    const [volume] = compose.services.postgres.volumes[0].split(':');
    expect(Object.keys(compose.volumes)).toContain(volume);
  });

  it('has a load balancer that finds them', () => {
    const { volumes, ports } = compose.services['load-balancer'];
    expect(volumes).toEqual([expect.stringMatching(/^\.\/haproxy\.cfg:.*:ro$/)]);
    expect(ports).toEqual(['127.0.0.1:8080:8080']);
    const { depends_on, ulimits } = compose.services['load-balancer'];
    // It starts without them, and finds them when they come.
    expect(depends_on).toBeUndefined();
    const [, needed] = /^ {2}fd-hard-limit (\d+)$/m.exec(text('deploy/haproxy.cfg')) ?? [];
    expect(ulimits.nofile).toEqual({ soft: Number(needed), hard: Number(needed) });
  });
});

describe('haproxy.cfg', () => {
  const lines = text('deploy/haproxy.cfg')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  const timeout = (name: string) =>
    seconds(
      lines
        .find((line) => line.startsWith(`timeout ${name} `))
        ?.split(' ')
        .at(-1) as string,
    );

  it('asks each replica of compose.yaml whether it is ready', () => {
    const servers = lines.flatMap((line) => /^server (\S+) (\S+)$/.exec(line)?.slice(1) ?? []);
    const { services } = parse(text('deploy/compose.yaml'), { merge: true });
    const replicas = Object.keys(services).filter((name) => name.startsWith('control-plane'));
    expect(servers).toEqual(replicas.flatMap((name) => [name, `${name}:8080`]));
    expect(lines).toContainEqual(expect.stringMatching(/^default-server check /));
    const path = lines
      .find((line) => line.startsWith('option httpchk'))
      ?.split(' ')
      .at(-1) as string;
    expect(path).toBe('/readyz');
    expectPublic(path);
  });

  it("shows nobody the replicas' metrics, and lets agents send theirs", () => {
    const [answer, ...others] = lines.filter((line) => line.startsWith('http-request return '));
    expect(others).toEqual([]);
    const [, body, pattern, methods] =
      /^http-request return status 404 .* string '([^']+)' .* if \{ path,url_dec -m reg (\S+) \} \{ method (.+) \}$/.exec(
        answer as string,
      ) ?? [];
    expect(JSON.parse(body as string)).toMatchObject({ error: 'ERR_NOT_FOUND', retryable: false });
    const isHidden = (path: string) => new RegExp(pattern as string).test(path);
    expect(['/metrics', '//metrics/', '/v1/agents/metrics', '/metricsx'].filter(isHidden)).toEqual([
      '/metrics',
      '//metrics/',
    ]);
    expect(methods?.split(' ')).toEqual(['GET', 'HEAD']);
    const post = openapi.paths['/metrics'];
    expect(Object.keys(post).sort()).toEqual(['get', 'post']);
  });

  it('outwaits a claim that waits, and closes idle connections before a replica does', () => {
    const longest = openapi.components.schemas.ClaimRequest.properties.wait_ms.maximum / 1_000;
    expect(longest).toBe(30);
    expect(timeout('server')).toBeGreaterThan(longest + 5);
    expect(timeout('client')).toBeGreaterThan(longest + 5);
    expect(timeout('http-keep-alive')).toBeLessThan(75);
  });

  it('says who asked, and repeats nothing that may have had its effect', () => {
    expect(lines).toContain('http-request del-header X-Forwarded-For');
    expect(lines).toContain('option forwardfor');
    expect(lines.filter((line) => line.startsWith('retry-on'))).toEqual(['retry-on conn-failure']);
    expect(lines).toContain('bind :8080');
  });

  it('answers in the envelope, with Retry-After where it is worth trying again', () => {
    const answers = lines
      .filter((line) => line.startsWith('http-error '))
      .map((line) => {
        const [, status, type, body, headers] =
          /^http-error status (\d+) content-type "([^"]+)" string '([^']+)'(.*)$/.exec(line) ?? [];
        return { status: Number(status), type, ...JSON.parse(body as string), headers };
      });
    expect(answers.map(({ status, error, retryable }) => [status, error, retryable])).toEqual([
      [400, 'ERR_VALIDATION', false],
      [408, 'ERR_VALIDATION', false],
      [413, 'ERR_VALIDATION', false],
      [500, 'ERR_BACKEND', true],
      [502, 'ERR_UNAVAILABLE', true],
      [503, 'ERR_UNAVAILABLE', true],
      [504, 'ERR_UNAVAILABLE', true],
    ]);
    for (const { status, type, message, headers } of answers) {
      expect([type, typeof message]).toEqual(['application/json; charset=utf-8', 'string']);
      expect(/hdr Retry-After/.test(headers)).toBe(status > 500);
    }
  });

  it('starts with any limit of open files, and without a replica; names are resolved again', () => {
    expect(lines.filter((line) => /\bmaxconn\b/.test(line))).toEqual([]);
    const server = lines.find((line) => line.startsWith('default-server ')) as string;
    expect(server).toContain('resolvers system resolve-prefer ipv4 init-addr last,libc,none');
    expect(lines).toEqual(expect.arrayContaining(['resolvers system', 'parse-resolv-conf']));
  });
});

describe('the unit for systemd', () => {
  const { Service = {}, Unit = {}, Install = {} } = ini(text('deploy/control-plane.service'));
  const environment = Object.fromEntries((Service.Environment ?? []).map((each) => each.split('=', 2)));

  it('starts the program as a user of its own and again after a failure', () => {
    expect(Service.ExecStart).toEqual(['/usr/bin/node /opt/control-plane/dist/main.js serve']);
    expect(Service.User?.[0]).not.toBe('root');
    expect([Service.Restart, Service.RestartPreventExitStatus]).toEqual([['on-failure'], ['2']]);
    expect(Unit.StartLimitIntervalSec).toEqual(['0']);
    expect(Install.WantedBy).toEqual(['multi-user.target']);
  });

  it('has settings that the program takes, and time to stop', () => {
    const settings = readSettings(environment);
    expectToFit(settings, { stopSeconds: Number(Service.TimeoutStopSec?.[0]) });
    expect(settings.database).toEqual({
      type: 'sqlite',
      path: `/var/lib/${Service.StateDirectory?.[0]}/control-plane.db`,
    });
    expect(Number(Service.LimitNOFILE?.[0])).toBeGreaterThan(settings.maxConnections);
    // With ProtectSystem=strict nothing else is writable; on PostgreSQL the file is in the working directory.
    const [workingDirectory = ''] = Service.WorkingDirectory ?? [];
    for (const each of [settings, readSettings({ ...environment, ...SECRETS_OF_POSTGRES })])
      expect(folderOfServerFile(each, workingDirectory)).toBe(`/var/lib/${Service.StateDirectory?.[0]}`);
    for (const name of Object.keys(SECRETS).filter((each) => each.endsWith('TOKEN')))
      expect(environment).not.toHaveProperty(name);
  });

  it.each([
    ['UMask', '0077'],
    ['LimitCORE', '0'],
    ['MemoryMax', '2G'],
    ['StateDirectoryMode', '0700'],
    ['NoNewPrivileges', 'true'],
    ['ProtectSystem', 'strict'],
    ['ProtectHome', 'true'],
    ['PrivateTmp', 'true'],
    ['PrivateDevices', 'true'],
    ['CapabilityBoundingSet', ''],
    ['RestrictAddressFamilies', 'AF_INET AF_INET6 AF_UNIX'],
    ['SystemCallFilter', '@system-service'],
  ])('keeps to itself: %s', (name, value) => {
    expect(Service[name]).toEqual([value]);
  });
});

describe('kubernetes.yaml', () => {
  const documents = parseAllDocuments(text('deploy/kubernetes.yaml')).map((document) => {
    expect(document.errors).toEqual([]);
    return document.toJS();
  });
  const [deployment, service, budget, policy] = [
    'Deployment',
    'Service',
    'PodDisruptionBudget',
    'NetworkPolicy',
  ].map((kind) => documents.find((each) => each.kind === kind));
  const pod = deployment.spec.template.spec;
  const [container] = pod.containers;

  it('has settings that the program takes; secrets are named and not there', () => {
    const env: Record<string, string> = {};
    for (const { name, value, valueFrom } of container.env) {
      expect(valueFrom?.secretKeyRef?.name === 'control-plane').toBe(name in SECRETS);
      env[name] = value ?? SECRETS[name];
    }
    const settings = readSettings(env);
    // The program drains by itself.
    expect(container.lifecycle).toBeUndefined();
    expectToFit(settings, { stopSeconds: pod.terminationGracePeriodSeconds });
    // Nobody else's network is trusted by default.
    expect(settings.trustProxy).toBe(false);
    expect(settings.database.type).toBe('postgres');
    const [mount] = container.volumeMounts;
    const volumeOf = (each: Json) => pod.volumes.find(({ name }: Json) => name === each.name);
    expect(settings.signingKeyFile).toBe(`${mount.mountPath}/${volumeOf(mount).secret.items[0].path}`);
    // Its root is read-only: without such a volume no command in the pod finds the server.
    expect(container.workingDir).toBeUndefined();
    const folder = folderOfServerFile(settings, image('WORKDIR')[0] as string);
    const writable = container.volumeMounts.filter((each: Json) => each.readOnly !== true);
    expect(writable.map((each: Json) => [each.mountPath, volumeOf(each).emptyDir.medium])).toEqual([
      [folder, 'Memory'],
    ]);
    // The volume is the group's.
    expect(pod.securityContext.fsGroup).toBe(pod.securityContext.runAsGroup);
    expect(documents.some(({ kind }) => kind === 'Secret')).toBe(false);
    // Kubernetes would set CONTROL_PLANE_PORT and others after the Service, and the program would refuse to start.
    expect([service.metadata.name, pod.enableServiceLinks]).toEqual(['control-plane', false]);
  });

  it('asks the right questions at the right port', () => {
    const ports = Object.fromEntries(container.ports.map((each: Json) => [each.name, each.containerPort]));
    for (const [probe, path] of [
      ['startupProbe', '/healthz'],
      ['livenessProbe', '/healthz'],
      ['readinessProbe', '/readyz'],
    ] as const) {
      expect(container[probe].httpGet.path).toBe(path);
      expectPublic(path);
      expect(ports[container[probe].httpGet.port]).toBe(8080);
    }
    expect(ports[service.spec.ports[0].targetPort]).toBe(8080);
  });

  it('keeps one replica through everything, and selects what it makes', () => {
    const { labels } = deployment.spec.template.metadata;
    for (const selector of [
      deployment.spec.selector.matchLabels,
      service.spec.selector,
      budget.spec.selector.matchLabels,
    ])
      expect(labels).toMatchObject(selector);
    expect(deployment.spec.replicas).toBeGreaterThan(budget.spec.minAvailable);
    expect(deployment.spec.strategy.rollingUpdate.maxUnavailable).toBe(0);
  });

  it('is reached by the ingress alone, and reaches names and PostgreSQL alone', () => {
    expect(policy.spec.podSelector.matchLabels).toEqual(deployment.spec.selector.matchLabels);
    expect(policy.spec.policyTypes).toEqual(['Ingress', 'Egress']);
    const [from] = policy.spec.ingress;
    expect(policy.spec.ingress).toHaveLength(1);
    expect(from.from).toEqual([{ namespaceSelector: { matchLabels: expect.any(Object) } }]);
    expect(from.ports).toEqual([{ protocol: 'TCP', port: container.ports[0].name }]);
    const ports = policy.spec.egress.flatMap(({ ports }: Json) => ports.map(({ port }: Json) => port));
    expect(ports).toEqual([53, 53, 5432]);
  });

  it('may do little: not root, no capability, nothing to write on, so much and no more', () => {
    expect([pod.securityContext.runAsNonRoot, pod.automountServiceAccountToken]).toEqual([true, false]);
    expect(container.securityContext).toEqual({
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    });
    expect(container.resources.requests).toEqual({ cpu: expect.any(String), memory: expect.any(String) });
    expect(container.resources.limits.memory).toEqual(expect.any(String));
    expect(container.image).toMatch(BY_DIGEST);
    const { resources, images } = parse(text('deploy/kustomization.yaml'));
    expect(resources).toEqual(['kubernetes.yaml']);
    expect(images.map(({ name, digest }: Json) => `${name}@${digest}`)).toEqual([container.image]);
    expect(`${pod.securityContext.runAsUser}:${pod.securityContext.runAsGroup}`).toBe(
      /^USER (.*)$/m.exec(text('Dockerfile'))?.[1],
    );
  });
});

describe('kubernetes-monitoring.yaml', () => {
  const [monitor, policy] = parseAllDocuments(text('deploy/kubernetes-monitoring.yaml')).map((each) =>
    each.toJS(),
  );
  const [deployment] = parseAllDocuments(text('deploy/kubernetes.yaml')).map((each) => each.toJS());
  const { template } = deployment.spec;

  it('scrapes each pod with a token, under the name that the alerts know', () => {
    for (const { spec } of [monitor, policy])
      expect(template.metadata.labels).toMatchObject((spec.selector ?? spec.podSelector).matchLabels);
    expect(template.metadata.labels[monitor.spec.jobLabel]).toBe('control-plane');
    const [endpoint] = monitor.spec.podMetricsEndpoints;
    expect(Object.keys(openapi.paths)).toContain(endpoint.path);
    expect(template.spec.containers[0].ports.map(({ name }: Json) => name)).toContain(endpoint.port);
    expect(endpoint.authorization.credentials).toEqual({ name: 'control-plane-prometheus', key: 'token' });
  });

  it("lets Prometheus in, and is not applied where the operator's kinds are not known", () => {
    expect(policy.spec.policyTypes).toEqual(['Ingress']);
    expect(policy.spec.ingress).toHaveLength(1);
    expect(policy.spec.ingress[0].from).toHaveLength(1);
    expect(Object.keys(policy.spec.ingress[0].from[0])).toEqual(['namespaceSelector', 'podSelector']);
    expect(parse(text('deploy/kustomization.yaml')).resources).toEqual(['kubernetes.yaml']);
  });
});

describe('the commands of the documents', () => {
  const PAGES = ['cli', 'deploy', 'operate', 'recover', 'watch'].map(
    (page) => `docs/control-plane-${page}.md`,
  );
  const pages = PAGES.map(text)
    .join('\n')
    .replaceAll(/ *\\\n */g, ' ');
  const all = (pattern: RegExp) => {
    const found = [...pages.matchAll(pattern)].map(({ groups }) => groups as Record<string, string>);
    expect(found.length).toBeGreaterThan(0);
    return found;
  };
  const firstStep = /^enrollment create /;

  it('in containers go to services that there are, by the name that the image gives the program', () => {
    expect(image('RUN').join()).toContain(
      'ln -s /opt/control-plane/dist/main.js /usr/local/bin/control-plane',
    );
    const { services } = parse(text('deploy/compose.yaml'), { merge: true });
    const compose = all(
      /docker compose exec (?:-T )?(?<service>[\w-]+) (?<program>\S+) (?<command>[^\n`]+)/g,
    );
    for (const { service, program } of compose) {
      expect(Object.keys(services)).toContain(service);
      expect(program).toBe('control-plane');
    }
    const workloads = parseAllDocuments(text('deploy/kubernetes.yaml')).map((each) => each.toJS());
    const kubernetes = all(
      /kubectl exec (?:-i )?deploy\/(?<name>[\w-]+) -- (?<program>\S+) (?<command>[^\n`]+)/g,
    );
    for (const { name, program } of kubernetes) {
      expect(workloads).toContainEqual(
        expect.objectContaining({ kind: 'Deployment', metadata: expect.objectContaining({ name }) }),
      );
      expect(program).toBe('control-plane');
    }
    for (const each of [compose, kubernetes])
      expect(each.map(({ command }) => command)).toContainEqual(expect.stringMatching(firstStep));
  });

  it("under systemd run as the unit does: its user, its folder, its settings' file, its database, its program", () => {
    const { Service = {} } = ini(text('deploy/control-plane.service'));
    const environment = Object.fromEntries((Service.Environment ?? []).map((each) => each.split('=', 2)));
    const [run = {}, ...others] = all(/systemd-run (?<options>.*) (?<program>\S+ \S+) "\$@"$/gm);
    expect(others).toEqual([]);
    const valuesOf = (pattern: RegExp) =>
      [...(run.options as string).matchAll(pattern)].map(([, value]) => value as string);
    expect([valuesOf(/--uid=(\S+)/g), valuesOf(/--gid=(\S+)/g)]).toEqual([Service.User, Service.Group]);
    expect(valuesOf(/-p (\S+)/g)).toEqual([
      `EnvironmentFile=${Service.EnvironmentFile}`,
      `WorkingDirectory=${Service.WorkingDirectory}`,
    ]);
    expect(valuesOf(/-E (\S+)/g)).toEqual([
      `CONTROL_PLANE_DATABASE_URL=${environment.CONTROL_PLANE_DATABASE_URL}`,
    ]);
    // What else the unit sets is the server's own.
    expect(Object.keys(environment).sort()).toEqual([
      'CONTROL_PLANE_BIND',
      'CONTROL_PLANE_DATABASE_URL',
      'CONTROL_PLANE_REGISTRATION',
      'NODE_ENV',
    ]);
    expect(Service.ExecStart).toEqual([`${run.program} serve`]);
    expect(all(/^control_plane (?<command>.*)$/gm).map(({ command }) => command)).toContainEqual(
      expect.stringMatching(firstStep),
    );
  });
});

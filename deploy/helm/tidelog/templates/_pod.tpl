{{/* What a broker's pod is, of either kind. Takes root, and zone, which is empty where there is none. */}}
{{- define "tidelog.pod" -}}
{{- $root := .root }}
{{- $zone := .zone }}
{{- $name := include "tidelog.name" $root }}
metadata:
  labels:
    {{- include "tidelog.labels" $root | nindent 4 }}
    {{- if $zone }}
    tidelog/zone: {{ $zone }}
    {{- end }}
    {{- with $root.Values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    # Brokers read their settings when they start: other settings, other pods.
    checksum/config: {{ include (print $root.Template.BasePath "/configmap.yaml") $root | sha256sum }}
    {{- with $root.Values.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "tidelog.serviceAccount" $root }}
  automountServiceAccountToken: false
  # A Service called tidelog would set TIDELOG_PORT and others, which are no settings, so that no broker would start.
  enableServiceLinks: false
  # SIGTERM: partitions go to other brokers, what is left is uploaded (shutdown.timeout.ms), each part within that time.
  terminationGracePeriodSeconds: {{ add (mul 2 $root.Values.shutdownTimeoutSeconds) $root.Values.preStopSeconds 15 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with $root.Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  affinity:
    {{- if $zone }}
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
          - matchExpressions:
              - {key: topology.kubernetes.io/zone, operator: In, values: [{{ $zone | quote }}]}
    {{- end }}
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: kubernetes.io/hostname
            labelSelector:
              matchLabels: {{- include "tidelog.selector" $root | nindent 16 }}
  {{- if not $zone }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: topology.kubernetes.io/zone
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "tidelog.selector" $root | nindent 10 }}
  {{- end }}
  containers:
    - name: broker
      image: "{{ $root.Values.image.repository }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}"
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: [serve, --config, /etc/tidelog/tidelog.toml]
      env:
        {{- if eq $root.Values.kind "Deployment" }}
        # A number and a name of its own it has none: the cluster gives it the one, and its address is the other. Brackets suit both families.
        - name: POD_IP
          valueFrom: {fieldRef: {fieldPath: status.podIP}}
        - {name: TIDELOG_NODE_ID, value: "-1"}
        - name: TIDELOG_ADVERTISED_LISTENERS
          value: "PLAINTEXT://[$(POD_IP)]:9092,CONTROLLER://[$(POD_IP)]:9093"
        {{- else }}
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: TIDELOG_NODE_ID
          valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
        - name: TIDELOG_ADVERTISED_LISTENERS
          value: "PLAINTEXT://$(POD_NAME).{{ $name }}-brokers.{{ $root.Release.Namespace }}.svc:9092,CONTROLLER://$(POD_NAME).{{ $name }}-brokers.{{ $root.Release.Namespace }}.svc:9093"
        {{- end }}
        {{- if $zone }}
        - {name: TIDELOG_BROKER_RACK, value: {{ $zone | quote }}}
        {{- end }}
      {{- with $root.Values.objectStore.credentials.existingSecret }}
      envFrom:
        - secretRef: {name: {{ . | quote }}}
      {{- end }}
      ports:
        - {name: kafka, containerPort: 9092}
        - {name: brokers, containerPort: 9093}
        - {name: metrics, containerPort: 9404}
      # Alive while its event loop turns; it may recover for minutes before it is ready, and is left alone meanwhile.
      livenessProbe:
        httpGet: {path: /healthz, port: metrics}
        initialDelaySeconds: 10
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        periodSeconds: 5
        timeoutSeconds: 5
      # Until clients that begin are led elsewhere it serves as ever; then it is told to stop.
      lifecycle:
        preStop:
          exec: {command: [sleep, {{ $root.Values.preStopSeconds | quote }}]}
      resources: {{- toYaml $root.Values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: config, mountPath: /etc/tidelog/tidelog.toml, subPath: tidelog.toml, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- if eq $root.Values.wal.kind "volume" }}
        - {name: wal, mountPath: /var/lib/tidelog}
        {{- end }}
        {{- if $root.Values.objectStore.ca.existingSecret }}
        - {name: ca, mountPath: /etc/tidelog/ca, readOnly: true}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ $name }}}
    - name: tmp
      emptyDir: {sizeLimit: 64Mi}
    {{- with $root.Values.objectStore.ca }}
    {{- if .existingSecret }}
    - name: ca
      secret:
        secretName: {{ .existingSecret }}
        items: [{key: {{ .key | quote }}, path: {{ .key | quote }}}]
    {{- end }}
    {{- end }}
{{- end -}}
